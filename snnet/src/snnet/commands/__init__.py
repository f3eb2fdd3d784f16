"""The verbs of the `snnet` command, one module each."""
