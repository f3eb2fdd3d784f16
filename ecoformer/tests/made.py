"""What the tests share."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ecoformer.method.attention import fit_hashes
from ecoformer.method.kernel_hash import normalise
from ecoformer.models.pvt import PVTv2
from paperkit.testing.commands import Command

GOLDEN = Path(__file__).parent / "golden"
TINY: dict[str, Any] = dict(
    embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), mlp_ratios=(2, 2, 2, 2), depths=(1, 1, 2, 1), nbits=8,
    supports=4, num_classes=10, fit=dict(topk=2, iterations=5),
)  # fmt: skip
"""A PVTv2 of milliseconds; the hash of stage 3 needs images of 32 px at least."""

ecoformer = Command("ecoformer", "ecoformer.cli:main")


def tokens(batch: int = 2, heads: int = 2, count: int = 24, width: int = 8, seed: int = 0) -> Tensor:
    """Normalised tokens (B, H, N, C)."""
    return normalise(torch.randn(batch, heads, count, width, generator=torch.Generator().manual_seed(seed)))


def fitted_pvt(**changes: Any) -> PVTv2:
    """A tiny network in eval mode, its hashes fitted on noise."""
    torch.manual_seed(0)
    model = PVTv2(**{**TINY, **changes}).eval()
    fit_hashes(model, torch.randn(2, 3, 64, 64))
    return model
