"""Metrics, reports, measuring, counting."""
