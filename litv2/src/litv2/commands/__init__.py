"""One module a verb of the command line; each is imported when its verb is asked for."""
