"""Networks of the method, their weights and the doors of timm and the hub."""
