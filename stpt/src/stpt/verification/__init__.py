"""Reference files recomputed by the code that users run."""
