"""Export and prediction."""
