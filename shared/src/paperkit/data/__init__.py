"""Data sets and their exact resume."""
