"""Networks of the method: official supernets, extracted sub-networks and the doors of timm and the hub."""
