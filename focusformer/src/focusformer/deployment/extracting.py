"""A sub-network written as a folder of its own, after it was compared with the supernet."""

from pathlib import Path

import torch

from focusformer.method.architecture import Architecture
from focusformer.method.supernet import Supernet
from focusformer.models.extraction import extract_subnet
from paperkit.errors import UserError


@torch.no_grad()
def extract(supernet: Supernet, architecture: Architecture, folder: Path, largest: float) -> float:
    """Writes `config.json` and `model.safetensors`; `StaticViT.from_pretrained` reads them.

    Args:
        largest: difference of a logit, relative to the largest logit, that is allowed.

    Returns:
        That difference on random images.

    Raises:
        UserError: an architecture above the super sizes, a larger difference, or a folder that cannot be written.
    """
    model, sizes = extract_subnet(supernet, architecture), supernet.sizes
    images = torch.randn(2, sizes.in_chans, sizes.img_size, sizes.img_size, generator=torch.Generator().manual_seed(0))
    expected = supernet.eval()(images, architecture)
    difference = ((model(images) - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()
    if not difference <= largest:
        raise UserError(f"{folder} was not written: its logits would differ from the supernet's by {difference:.2g}")
    model.save_pretrained(folder)
    return difference
