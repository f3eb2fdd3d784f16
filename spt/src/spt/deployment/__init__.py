"""What leaves the house: fused, merged, exported and predicting models."""
