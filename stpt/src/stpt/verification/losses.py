"""Reference files of the losses: whole ones of both data sets, and their parts.

In float32 as the reference was: which action a cell learns depends on comparisons of rounded numbers.
"""

import re
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from paperkit.errors import UserError
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import Kind, Tolerance, check_options
from stpt.method.consistency import triplet
from stpt.method.losses import (
    DetectionLoss,
    Focal,
    activation_loss,
    giou_loss,
    intersection_over_length,
    iou,
    linear_iou_loss,
    sampled,
)
from stpt.verification.detector import check_said, gradients

Variant = Literal["thumos", "activitynet"]
OUTPUTS = ("loc", "conf", "prop_loc", "prop_conf", "center")
LOSSES = ("loss_l", "loss_c", "loss_prop_l", "loss_prop_c", "loss_ct")
"""In the order of the config's weights."""
KIND_OF: dict[Variant, str] = {"thumos": "thumos", "activitynet": "anet"}


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def _whole(variant: Variant) -> Callable[[ReferenceFile], dict[str, Tensor]]:
    def recompute(file: ReferenceFile) -> dict[str, Tensor]:
        """The losses of each case, their weighted sum and its gradients."""
        c = file.config
        check_options(c["focal"], ("alpha_background", "alpha_other", "gamma", "eps"), "focal")
        if not isinstance(c["weights"], list) or len(c["weights"]) != len(LOSSES):
            raise UserError(f"config.weights is {c['weights']}; a weight each for {', '.join(LOSSES)} would be right")
        weights = dict(zip(LOSSES, c["weights"], strict=True))
        loss = DetectionLoss(variant, c["clip_length"], weights, c["overlap_thresh"], Focal(**c["focal"]))
        cases = sorted({int(found[1]) for name in file.inputs if (found := re.match(r"c(\d+)\.", name))})
        check_said(file, kind=KIND_OF[variant], cases=len(cases))
        computed: dict[str, Tensor] = {}
        for case in cases:
            leaves = {name: _leaf(file.inputs[f"c{case}.{name}"]) for name in OUTPUTS}
            check_said(file, num_classes=leaves["conf"].shape[2])
            outputs = {**leaves, "priors": file.inputs["priors"]}
            targets = _targets(file, case, len(leaves["loc"]))
            unweighted = loss.of_cells(outputs, targets)
            computed |= {f"out.c{case}.{name}": value for name, value in unweighted.items()}
            total = sum(loss(outputs, targets).values(), torch.zeros(()))
            computed[f"out.c{case}.total"] = total
            computed |= gradients(file, total, leaves, f"c{case}.")
        return computed

    return recompute


def _targets(file: ReferenceFile, case: int, batch: int) -> list[Tensor]:
    targets, classes = [file.inputs[f"c{case}.target.{clip}"] for clip in range(batch)], file.config["num_classes"]
    if (given := len(file.part(f"in.c{case}.target."))) != batch:
        raise UserError(f"case {case} has targets for {given} clips; the outputs are of {batch}")
    for clip, target in enumerate(targets):
        if len(target) and not 1 <= target[:, 2].min() <= target[:, 2].max() < classes:
            raise UserError(f"in.c{case}.target.{clip} has a label that is none of 1 to {classes - 1}")
    return targets


def loss_parts(file: ReferenceFile) -> dict[str, Tensor]:
    """Losses of distance pairs, focal loss, losses of frames at boundaries, sampled masks, the triplet loss."""
    given, how = file.inputs, file.config["triplet"]
    check_options(how, ("margin", "p", "eps", "reduction"), "triplet")
    target, labels, masks = given["target"], given["labels"], given["scores"]
    check_said(file, N=len(target))
    computed = {"out.ioa": intersection_over_length(given["pred"], target)}
    for name, function in (("giou", giou_loss), ("linear_iou", linear_iou_loss), ("calc_iou", iou)):
        pred = _leaf(given["pred"])
        computed[f"out.{name}"] = function(pred, target)
        computed |= gradients(file, computed[f"out.{name}"].sum(), {name: pred})
    logits, start, end = _leaf(given["logits"]), _leaf(given["start"]), _leaf(given["end"])
    focal = Focal()(logits, labels).sum()
    losses = activation_loss(start, masks[:, 0]), activation_loss(end, masks[:, 1])
    computed |= {"out.focal_sum": focal, "out.loss_start": losses[0], "out.loss_end": losses[1]}
    computed |= gradients(file, focal, {"logits": logits})
    computed |= gradients(file, losses[0] + 2 * losses[1], {"start": start, "end": end})
    computed["out.triplet"] = triplet([given["anchor"]], [given["positive"]], [given["negative"]], (1.0,), **how)
    return computed | _sampled(file.outputs, masks)


def _sampled(outputs: Mapping[str, Tensor], masks: Tensor) -> dict[str, Tensor]:
    """`scores_divN`: every N-th frame."""
    factors = [int(found[1]) for name in outputs if (found := re.fullmatch(r"scores_div([1-9]\d{0,3})", name))]
    return {f"out.scores_div{n}": sampled(masks, n, masks.shape[-1] // n) for n in factors}


def _tolerance(file: ReferenceFile, key: str) -> Tolerance:
    return Tolerance(0.0 if key.startswith("out.scores_div") else 1e-5)


_WHOLE = ("kind", "num_classes", "clip_length", "overlap_thresh", "weights", "focal", "cases")
KINDS = {
    **{
        f"loss_{name}": Kind(_whole(variant), _tolerance, options=_WHOLE, requires=("in.priors", "in.c*.loc"))
        for variant, name in KIND_OF.items()
    },
    "loss_parts": Kind(
        loss_parts,
        _tolerance,
        options=("N", "triplet"),
        requires=(
            *("in.pred", "in.target", "in.logits", "in.labels", "in.start", "in.end", "in.scores"),
            *("in.anchor", "in.positive", "in.negative"),
        ),
    ),
}
