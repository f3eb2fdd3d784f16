"""Training on real images, one file per engine."""
