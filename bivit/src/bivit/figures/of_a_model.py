"""The pictures of a user's own network: its softmax rows, and what training did to its binary layers."""

from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure
from torch import Tensor, nn

from bivit.figures.active_sets import ONES, active_sets
from bivit.figures.layers import draw_scales, draw_surviving, learned_scales, surviving_gradient
from bivit.figures.rows import draw_row, draw_scores, draw_thresholds
from bivit.figures.scores import attention_logits
from bivit.method.softmax_aware import BETA


def figures_of(teacher: nn.Module, images: Tensor) -> dict[str, Callable[[], Figure]]:
    """Name -> drawing of the softmax rows of a network with softmax attention on images (B, C, H, W)."""
    logits = [layer.flatten(0, -2) for layer in attention_logits(teacher, images)]
    rows = [layer.softmax(-1) for layer in logits]
    return {
        "attention_row": partial(draw_one_row, logits[0]),
        "thresholds": partial(draw_thresholds, rows),
        "scores": partial(draw_scores, rows, logits),
    }


def figures_of_student(student: nn.Module, images: Tensor, name: str) -> dict[str, Callable[[], Figure]]:
    """Name -> drawing of the binary layers of a network called `name`; scales only where some are learned."""
    scales = learned_scales(student)
    drawn: dict[str, Callable[[], Figure]] = {"scales": partial(draw_scales, scales)} if scales else {}
    return {**drawn, "gradients": partial(draw_surviving, surviving_gradient(student, images), name)}


def draw_one_row(logits: Tensor) -> Figure:
    """Of rows (R, N) the one whose largest score is the median of all: neither flat nor a single peak."""
    scores = logits.softmax(-1)
    tops = scores.amax(-1)
    chosen = int(tops.sort().indices[len(tops) // 2])
    sets = {rule: binary[chosen] for rule, binary in active_sets(logits).items() if rule != ONES}
    return draw_row(scores[chosen], sets, BETA * float(tops[chosen]))
