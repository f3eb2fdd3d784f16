"""Real integers: packing, kernels, export and sampling."""
