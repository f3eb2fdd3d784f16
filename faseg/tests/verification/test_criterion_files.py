"""Criterion files of other shapes than the given one: pictures without masks, more masks than queries, no output more.

Expected values come from full logit maps and torch's own losses, one pair at a time.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from faseg.verification.criterion import KINDS
from paperkit.verification import verify

POINTS, CLASSES, QUERIES = 10, 3, 4


def made(counts: list[int], outputs: int) -> dict[str, Tensor]:
    """Inputs, and draws in the order of the calls."""
    generator = torch.Generator().manual_seed(sum(counts))
    tensors: dict[str, Tensor] = {}
    for prefix in ("", *(f"aux.{i}." for i in range(outputs - 1))):
        tensors[f"in.{prefix}pred_logits"] = torch.randn(len(counts), QUERIES, CLASSES + 1, generator=generator)
        tensors[f"in.{prefix}pred_masks"] = torch.randn(len(counts), QUERIES, 6, 8, generator=generator)
    for b, count in enumerate(counts):
        tensors[f"in.targets.{b}.labels"] = torch.randint(0, CLASSES, (count,), generator=generator)
        tensors[f"in.targets.{b}.masks"] = (torch.rand(count, 24, 32, generator=generator) > 0.5).byte()
    pairs = sum(min(count, QUERIES) for count in counts)
    shapes = [*[(1, POINTS, 2)] * len(counts), (pairs, 2 * POINTS, 2), (pairs, POINTS - POINTS // 2, 2)] * outputs
    for i, shape in enumerate(shapes):
        tensors[f"in.rand.{i}"] = torch.rand(shape, generator=generator)
    return tensors


def class_loss(tensors: dict[str, Tensor], pairs: list[list[tuple[int, int]]]) -> Tensor:
    total, weights = torch.zeros(()), 0.0
    for b, (logits, found) in enumerate(zip(tensors["in.pred_logits"], pairs, strict=True)):
        wanted = dict(found)
        for q in range(QUERIES):
            label = int(tensors[f"in.targets.{b}.labels"][wanted[q]]) if q in wanted else CLASSES
            weight = 1.0 if q in wanted else 0.1
            total, weights = total - weight * logits[q].log_softmax(0)[label], weights + weight
    return total / weights


def best_pairs(tensors: dict[str, Tensor], b: int) -> list[tuple[int, int]]:
    """The cheapest pairs of the last output, of all that there are."""
    import itertools

    labels, masks = tensors[f"in.targets.{b}.labels"], tensors[f"in.targets.{b}.masks"].float()
    grid = 2 * tensors[f"in.rand.{b}"][:, :, None] - 1
    logits = F.grid_sample(tensors["in.pred_masks"][b][None], grid, align_corners=False)[0, :, :, 0]
    truth = F.grid_sample(masks[None], grid, align_corners=False)[0, :, :, 0] if len(masks) else masks
    cost = torch.zeros(QUERIES, len(masks))
    for q, t in itertools.product(range(QUERIES), range(len(masks))):
        s, y = logits[q].sigmoid(), truth[t]
        dice = 1 - (2 * (s * y).sum() + 1) / (s.sum() + y.sum() + 1)
        chance = tensors["in.pred_logits"][b, q].softmax(0)[labels[t]]
        cost[q, t] = -2 * chance + 5 * F.binary_cross_entropy_with_logits(logits[q], y) + 5 * dice
    few = min(QUERIES, len(masks))
    ways = (
        list(zip(queries, chosen, strict=True))
        for queries in itertools.combinations(range(QUERIES), few)
        for chosen in itertools.permutations(range(len(masks)), few)
    )
    return min(ways, key=lambda way: sum(float(cost[q, t]) for q, t in way))


@pytest.mark.parametrize(("counts", "outputs"), [([2, 0, 1], 2), ([0, 0], 1), ([5], 3)])
def test_verifies_and_notices_a_change(counts: list[int], outputs: int, tmp_path: Path) -> None:
    tensors = made(counts, outputs)
    pairs = [best_pairs(tensors, b) for b in range(len(counts))]
    for b, found in enumerate(pairs):
        tensors[f"out.match.0.{b}.query"] = torch.tensor([q for q, _ in found], dtype=torch.long)
        tensors[f"out.match.0.{b}.target"] = torch.tensor([t for _, t in found], dtype=torch.long)
    tensors["out.loss_ce"] = class_loss(tensors, pairs).reshape(1)
    config = dict(
        num_classes=CLASSES, num_points=POINTS, oversample_ratio=2.0, importance_sample_ratio=0.5,
        no_object_weight=0.1, weights=dict(loss_ce=2.0, loss_mask=5.0, loss_dice=5.0),
        matcher=dict(cost_class=2.0, cost_mask=5.0, cost_dice=5.0), aux=outputs - 1,
    )  # fmt: skip
    metadata = {"kind": "criterion", "config": json.dumps(config)}
    save_file(tensors, tmp_path / "made.safetensors", metadata)
    assert verify.run([tmp_path / "made.safetensors"], KINDS) == 0
    save_file({**tensors, "out.loss_ce": tensors["out.loss_ce"] * 1.0001}, tmp_path / "moved.safetensors", metadata)
    assert verify.run([tmp_path / "moved.safetensors"], KINDS) == 1
    longer = {**tensors, f"in.rand.{len(counts) * outputs + 2 * outputs}": torch.rand(1, POINTS, 2)}
    save_file(longer, tmp_path / "longer.safetensors", metadata)
    assert verify.run([tmp_path / "longer.safetensors"], KINDS) == 1
