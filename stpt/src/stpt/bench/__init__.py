"""The clock: what is raced, and how."""
