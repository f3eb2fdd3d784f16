"""The engine on real diffusion models."""
