"""How a network computes without training: float32, float32 with quicker products, or bfloat16."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS = FLOAT32, MEDIUM, BFLOAT16 = ("float32", "medium", "bfloat16")
"""As torch computes by itself; with `set_float32_matmul_precision("medium")`; with autocast."""


@contextmanager
def inference_in(precision: str, device: torch.device | str = "cpu") -> Iterator[None]:
    """Inference mode in one of `PRECISIONS`, within the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if precision == MEDIUM else before)
    half = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == BFLOAT16)
    try:
        with torch.inference_mode(), half:
            yield
    finally:
        torch.set_float32_matmul_precision(before)
