"""Part A: how well each binary rule approximates the softmax rows of a trained teacher.

Shapes: R rows of all layers, heads and images, N tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bivit.figures.active_sets import active_sets
from bivit.figures.scores import attention_logits
from bivit.method.softmax_aware import best_scale, fitted_beta, optimal_binary, squared_error


def measure_rows(teacher: nn.Module, images: Tensor) -> dict[str, Any]:
    """The fields of `SeedResult` that belong to part A."""
    logits = torch.cat([layer.flatten(0, -2) for layer in attention_logits(teacher, images)]).double()
    scores, sets = logits.softmax(-1), active_sets(logits)
    size, largest, best = scores.square().sum(-1), scores.amax(-1), optimal_binary(scores).threshold.flatten()

    def scaled(binary: Tensor) -> float:
        scale = best_scale(scores, binary).nan_to_num(0)  # a row without active entries
        return float((squared_error(scores, binary, scale) / size).mean())

    return {
        "scaled_errors": {rule: scaled(binary) for rule, binary in sets.items()},
        "raw_errors": {rule: float((scores - binary).square().mean()) for rule, binary in sets.items()},
        "active": {rule: float(binary.mean()) for rule, binary in sets.items()},
        "beta": fitted_beta(scores),
        "correlation": float(torch.corrcoef(torch.stack([largest, best]))[0, 1]),
    }
