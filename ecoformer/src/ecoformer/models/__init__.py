"""Networks of the method, the authors' weights, the doors of timm and the hub."""
