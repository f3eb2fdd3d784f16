"""Training on real data, one file per engine."""
