"""Latent-diffusion networks, the authors' files, the doors of diffusers: schedulers and pipelines."""
