"""The embedded experiment."""
