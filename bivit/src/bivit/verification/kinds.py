"""How each kind of reference file is recomputed: the table behind `bivit verify FILE...`."""
