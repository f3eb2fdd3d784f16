"""Packed bits: kernels, layers, models, files; and export."""
