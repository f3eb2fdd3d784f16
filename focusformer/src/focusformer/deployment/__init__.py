"""Export of extracted sub-networks."""
