"""The command line: verbs, engines, seeds side by side."""
