"""What papers need to enter other libraries' registries and contracts."""
