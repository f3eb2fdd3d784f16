"""The method of the paper, one file per idea."""
