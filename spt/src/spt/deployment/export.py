"""What a merged model is exported with: `paperkit.export` traces it on an example of its own input size."""

from typing import Any

import torch
from torch import Tensor


def plain_example(model: Any, batch: int = 2) -> Tensor:
    """Random images (B, C, H, W) of the size that the plain timm model takes."""
    channels = model.patch_embed.proj.in_channels if hasattr(model, "patch_embed") else 3
    size = model.patch_embed.img_size if hasattr(model, "patch_embed") else (224, 224)
    return torch.randn(batch, int(channels), *size, generator=torch.Generator().manual_seed(0))
