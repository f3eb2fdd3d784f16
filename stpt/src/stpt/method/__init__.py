"""The paper, one file per idea."""
