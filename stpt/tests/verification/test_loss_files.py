"""Loss files with other cells, clips and weights than the given ones, computed cell by cell.

Expected values come from loops over clips, cells and actions, and from torch's own losses.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from paperkit.testing.golden import check_altered_results_fail, check_verifies
from stpt.verification.losses import KINDS, LOSSES

CLASSES = 4
RANGES = [(0, 30), (15, 60), (30, 120), (60, 240), (96, 768), (256, 768)]
FOCAL = dict(alpha_background=0.3, alpha_other=0.6, gamma=1.5, eps=1e-5)


def overlap(pred: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU loss of two pairs of distances."""
    inter = torch.min(pred[0], truth[0]) + torch.min(pred[1], truth[1])
    union = pred.sum() + truth.sum() - inter
    hull = torch.max(pred[0], truth[0]) + torch.max(pred[1], truth[1])
    return inter / union, 1 - (inter / union - (hull - union) / hull)


def focal(logits: Tensor, label: int) -> Tensor:
    q = logits.softmax(0)[label] + FOCAL["eps"]
    return -(FOCAL["alpha_other"] if label else FOCAL["alpha_background"]) * (1 - q) ** FOCAL["gamma"] * q.log()


def action_of(prior: Tensor, target: Tensor, frames: int, anet: bool) -> tuple[int, Tensor] | None:
    """Label and distances of the shortest action around a prior."""
    found, length = None, math.inf
    for start, end, label in target:
        left, right = (prior[0] - start) * frames, (end - prior[0]) * frames
        low, high = RANGES[int(prior[1])] if anet else (-1, math.inf)
        if left >= 0 and right >= 0 and low < max(left, right) <= high and left + right < length:
            found, length = (int(label), torch.stack([left, right])), float(left + right)
    return found


def losses(priors: Tensor, x: dict[str, Tensor], targets: list[Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    anet, frames = config["kind"] == "anet", config["clip_length"]
    sums = [{name: torch.zeros(()) for name in LOSSES} for _ in targets]
    counts = [[0, 0] for _ in targets]
    for b, target in enumerate(targets):
        found = [action_of(prior, target, frames, anet) for prior in priors]
        ious = {k: overlap(x["loc"][b, k].detach(), one[1])[0].item() for k, one in enumerate(found) if one}
        least = min([config["overlap_thresh"], *([max(ious.values(), default=math.inf)] if anet else [])])
        for k, one in enumerate(found):
            near = one is not None and ious[k] >= least
            sums[b]["loss_c"] = sums[b]["loss_c"] + focal(x["conf"][b, k], one[0] if one else 0)
            sums[b]["loss_prop_c"] = sums[b]["loss_prop_c"] + focal(x["prop_conf"][b, k], one[0] if near else 0)
            if one is None:
                continue
            loc, prop_loc, truth = x["loc"][b, k], x["prop_loc"][b, k], one[1]
            refined = loc + loc.sum() / 2 * prop_loc
            quality = overlap(refined, truth)[0].clamp(min=0)
            sums[b]["loss_l"] = sums[b]["loss_l"] + overlap(loc, truth)[1]
            p = x["center"][b, k, 0].sigmoid()
            sums[b]["loss_ct"] = sums[b]["loss_ct"] - quality * p.log() - (1 - quality) * (1 - p).log()
            counts[b][0] += 1
            if near:
                shift = ((truth - loc) / (loc.sum() / 2)).detach()
                one_by_one = F.smooth_l1_loss if anet else F.l1_loss
                sums[b]["loss_prop_l"] = sums[b]["loss_prop_l"] + one_by_one(prop_loc, shift, reduction="sum")
                counts[b][1] += 1
    batch = len(targets)
    divisors = [[max(c, 1) * batch for c in of_clip] for of_clip in counts]
    if not anet:
        divisors = [[max(sum(of_clip[i] for of_clip in counts), 1) for i in (0, 1)]] * batch
    return {
        name: sum((clip[name] / by["prop" in name] for clip, by in zip(sums, divisors, strict=True)), torch.zeros(()))
        for name in LOSSES
    }


@pytest.mark.parametrize("kind", ["thumos", "anet"])
def test_verifies_and_notices_a_change(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    frames = 160
    lengths = [10, 5, 3]
    config = dict(
        kind=kind, num_classes=CLASSES, clip_length=frames, overlap_thresh=0.45, weights=[2.0, 0.5, 3.0, 1.5, 0.7],
        focal=FOCAL, cases=4,
    )  # fmt: skip
    priors = torch.cat([
        torch.stack([(torch.arange(t) + 0.5) / t, torch.full((t,), float(level))], 1) for level, t in enumerate(lengths)
    ])  # fmt: skip
    priors = priors if kind == "anet" else priors[:, :1]
    # Equal lengths, an action within another, one that no cell lies in, none at all, one at the clip's end.
    cases = [
        [[[0.1, 0.6, 1], [0.2, 0.7, 2], [0.3, 0.45, 3]], [[0.5, 1.0, 2]]],
        [[[0.101, 0.102, 1]]],
        [[], [[0.0, 0.3, 3]]],
        [[[0.05, 0.95, 1]]],
    ]
    tensors = {"in.priors": priors}
    for number, case in enumerate(cases):
        targets = [torch.tensor(target).reshape(-1, 3) for target in case]
        shapes = dict(loc=2, conf=CLASSES, prop_loc=2, prop_conf=CLASSES, center=1)
        given = {name: torch.randn(len(case), sum(lengths), width) for name, width in shapes.items()}
        given["loc"] = 40 * torch.rand_like(given["loc"])
        for value in given.values():
            value.requires_grad_()
        found = losses(priors, given, targets, config)
        total = sum(
            (weight * found[name] for weight, name in zip(config["weights"], LOSSES, strict=True)), torch.zeros(())
        )
        gradients = torch.autograd.grad(total, list(given.values()), materialize_grads=True)
        tensors |= {f"in.c{number}.{name}": value for name, value in given.items()}
        tensors |= {f"in.c{number}.target.{b}": target for b, target in enumerate(targets)}
        tensors |= {f"out.c{number}.{name}": value for name, value in {**found, "total": total}.items()}
        tensors |= {f"grad.c{number}.{name}": value for name, value in zip(given, gradients, strict=True)}
    path = tmp_path / f"loss_{kind}.safetensors"
    save_file(
        {name: value.detach().clone() for name, value in tensors.items()}, path,
        {"kind": f"loss_{kind}", "config": json.dumps(config)},
    )  # fmt: skip
    check_verifies(path, KINDS)
    (tmp_path / "altered").mkdir()
    check_altered_results_fail(path, KINDS, tmp_path / "altered", most=6)
