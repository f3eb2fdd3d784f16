"""Which entries of a softmax row each binary rule keeps.

Shapes: R rows, N tokens.
"""

import torch
from torch import Tensor

from bivit.method.softmax_aware import BETA, binarize_scores, fitted_beta, optimal_binary

OPTIMAL, SAB, FITTED, BIT_START, BOOL, ONES = (
    *("optimal (Algorithm 1)", f"SAB, beta {BETA:g}", "SAB, fitted beta"),
    *("BiT at its initial scale", "bool (BiBERT)", "all ones (naive)"),
)
RULES = (OPTIMAL, SAB, FITTED, BIT_START, BOOL, ONES)


def active_sets(logits: Tensor) -> dict[str, Tensor]:
    """Rule -> b in {0, 1} (R, N) of rows of logits (R, N)."""
    scores = logits.softmax(-1)
    rules = {
        OPTIMAL: optimal_binary(scores).binary,
        SAB: binarize_scores(scores),
        FITTED: binarize_scores(scores, fitted_beta(scores)),
        BIT_START: scores > 2 * scores.mean(),  # round(a / alpha) with alpha = 4 * mean |a|
        BOOL: logits > 0,
        ONES: torch.ones_like(scores),
    }
    return {rule: binary.to(scores.dtype) for rule, binary in rules.items()}
