"""The verbs that are this paper's own."""
