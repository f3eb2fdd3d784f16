"""Detection in a video file, features, export."""
