"""Tuned models in use: switched, merged, exported, predicting."""
