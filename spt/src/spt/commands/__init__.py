"""The verbs of the `spt` command, one module each."""
