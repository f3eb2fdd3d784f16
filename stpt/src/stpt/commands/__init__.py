"""Verbs that are this paper's own."""
