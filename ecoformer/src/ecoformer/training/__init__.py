"""One file per engine on real data, and the generators of the Long Range Arena."""
