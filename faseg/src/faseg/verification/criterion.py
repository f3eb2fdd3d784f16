"""Reference files of the training: matching and losses, parameter groups, the schedule of the rate."""

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.optim import PolyLR
from torch import Tensor

from faseg.method.criterion import Criterion
from faseg.method.matcher import Matcher, Targets
from faseg.method.prediction_heads import Prediction
from faseg.models.faseg import build
from faseg.training.param_groups import rates
from faseg.verification.sizes import check_said
from paperkit.errors import UserError
from paperkit.verification.verify import Kind, ReferenceFile, Tolerance, check_options

BASE_RATE, BACKBONE, POWER = 1e-4, 0.1, 0.9


class _Draws:
    """The file's uniform draws, in the order of the calls."""

    def __init__(self, file: ReferenceFile) -> None:
        self.file, self.used = file, 0

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        draw = self.file.inputs[f"rand.{self.used}"]
        if draw.shape != shape:
            raise UserError(f"in.rand.{self.used} is {tuple(draw.shape)}, the draw at its place is {shape}")
        self.used += 1
        return draw

    def check_all_used(self) -> None:
        given = sum(name.startswith("rand.") for name in self.file.inputs)
        if given != self.used:
            raise UserError(f"the file holds {given} draws; the losses of its outputs take {self.used}")


class _Recorded(Criterion):
    """The criterion, which keeps what lies between its steps."""

    def __init__(self, *options: Any, **named: Any) -> None:
        super().__init__(*options, **named)
        self.kept: list[Tensor] = []
        self.pairs: list[Any] = []

    def class_loss(self, logits: Tensor, targets: Targets, pairs: Any) -> Tensor:
        self.pairs.append(pairs)
        return super().class_loss(logits, targets, pairs)

    def points(self, maps: Tensor, draw: Any) -> Tensor:
        self.kept.append(super().points(maps, draw))
        return self.kept[-1]


def _targets(file: ReferenceFile) -> Targets:
    sides = [{key: file.inputs[f"targets.{b}.{key}"] for key in ("labels", "masks")} for b in range(_batch(file))]
    return Targets.stack([one["labels"] for one in sides], [one["masks"] for one in sides])


def _check_sizes(file: ReferenceFile) -> None:
    logits, masks = file.inputs["pred_logits"], file.inputs["pred_masks"]
    check_said(file, {
        "batch": len(logits), "num_queries": logits.shape[1], "num_classes": logits.shape[2] - 1,
        "mask_size": list(masks.shape[2:]), "target_size": list(file.inputs["targets.0.masks"].shape[1:]),
    })  # fmt: skip


def _batch(file: ReferenceFile) -> int:
    return len(file.inputs["pred_logits"])


def _as_embeddings(maps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Given logit maps (B, Q, H, W) of each output as features (all maps) and embeddings that choose among them."""
    features, first, chosen = torch.cat(maps, dim=1), 0, []
    for each in maps:
        eye = torch.eye(each.shape[1], features.shape[1] - first, dtype=features.dtype)
        chosen.append(torch.nn.functional.pad(eye, (first, 0)).expand(len(each), -1, -1))
        first += each.shape[1]
    return features, chosen


def recompute_criterion(file: ReferenceFile) -> dict[str, Any]:
    """Costs, pairs, points, losses and gradients; the draws are the file's own."""
    c, known = file.config, ("loss_ce", "loss_mask", "loss_dice")
    check_options(c["weights"], known, "weights")
    check_options(c["matcher"], ("cost_class", "cost_mask", "cost_dice"), "matcher")
    matcher = Matcher(c["num_points"], **c["matcher"])
    criterion = _Recorded(
        c["num_classes"], matcher, c["no_object_weight"], c["oversample_ratio"], c["importance_sample_ratio"],
        c["weights"],
    )  # fmt: skip
    prefixes = [*(f"aux.{i}." for i in range(c["aux"])), ""]
    given = {f"{p}pred_{part}": file.inputs[f"{p}pred_{part}"] for p in prefixes for part in ("logits", "masks")}
    _check_sizes(file)
    for tensor in given.values():
        tensor.requires_grad_()
    features, embeddings = _as_embeddings([given[f"{p}pred_masks"] for p in prefixes])
    outputs = [Prediction(given[f"{p}pred_logits"], e) for p, e in zip(prefixes, embeddings, strict=True)]
    targets, draws = _targets(file), _Draws(file)
    losses = criterion(outputs, features, targets, draws)
    draws.check_all_used()
    total = sum(criterion.weigh(losses).values(), torch.zeros(()))
    gradients = torch.autograd.grad(total, list(given.values()), allow_unused=True)
    computed: dict[str, Any] = {f"grad.{name}": g for name, g in zip(given, gradients, strict=True) if g is not None}
    computed.update({f"out.{name}": loss.reshape(1) for name, loss in losses.items()})
    computed["out.total"] = total.reshape(1)
    for j, (points, pairs) in enumerate(zip(criterion.kept, criterion.pairs, strict=True)):
        computed[f"out.point_coords.{j}"] = points
        for b, (queries, masks) in enumerate(pairs):
            computed[f"out.match.{j}.{b}.query"], computed[f"out.match.{j}.{b}.target"] = queries, masks
    return {**computed, **dict(_costs(file, matcher, outputs[-1], features, targets))}


def _costs(
    file: ReferenceFile, matcher: Matcher, output: Prediction, features: Tensor, targets: Targets
) -> Iterator[tuple[str, Tensor]]:
    """Costs of the last output by name; a picture without masks has none."""
    points = torch.cat([file.inputs[f"rand.{b}"] for b in range(_batch(file))])
    costs = matcher.costs(*output, features, targets, points)
    named = {"cost": matcher.weigh(costs), "cost_class": costs.classes, "cost_mask": costs.masks}
    for name, cost in {**named, "cost_dice": costs.dice}.items():
        for b, count in enumerate(targets.counts):
            if count:
                yield f"out.{name}.{b}", cost[b, :, :count]


def recompute_param_groups(file: ReferenceFile) -> dict[str, Any]:
    """Rate and decay by name; the network is the release that the file's name names."""
    release = file.path.stem.removeprefix("param_groups_")
    model = build(release, "meta")
    optimizer = torch.optim.AdamW(model.parameters())
    groups = {name: list(pair) for name, pair in rates(model, BASE_RATE).items()}
    betas, eps = list(optimizer.defaults["betas"]), optimizer.defaults["eps"]
    return {"config.groups": groups, "config.optimizer": "AdamW", "config.betas": betas, "config.eps": eps}


def recompute_lr_schedule(file: ReferenceFile) -> dict[str, Any]:
    """The rate of the first group before the named iterations, by mmengine's schedule."""
    asked, last = {int(step) for step in file.config["lr"]}, int(file.config["max_iter"])
    if not asked or min(asked) < 0 or max(asked) >= last:
        raise UserError(f"lr names iterations outside 0 to {last - 1}")
    rate = BASE_RATE * (BACKBONE if file.config["first_group"].startswith("backbone.") else 1.0)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
    # mmengine reaches the end one iteration before `end`; the recipe's rate is 0 after the last one only.
    schedule = PolyLR(optimizer, eta_min=0.0, power=POWER, begin=0, end=last + 1, by_epoch=False)
    found = {}
    for step in range(max(asked) + 1):
        if step in asked:
            found[str(step)] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
    return {"config.lr": found}


KINDS = {
    "criterion": Kind(
        recompute_criterion,
        lambda file, key: Tolerance(1e-4 if key.startswith("grad.") else 1e-5, floor=0.0),
        options=("batch", "num_queries", "num_classes", "mask_size", "target_size", "num_points", "oversample_ratio",
                 "importance_sample_ratio", "no_object_weight", "weights", "matcher", "aux", "seed", "rand_order"),
        requires=("in.pred_logits", "in.pred_masks", "in.rand.0"),
        limits={"aux": 100},
    ),
    "param_groups": Kind(recompute_param_groups, 0.0, results=("groups", "optimizer", "betas", "eps"), options=(),
                         config_tolerance=1e-12),
    "lr_schedule": Kind(recompute_lr_schedule, 0.0, results=("lr",), options=("max_iter", "first_group"),
                        config_tolerance=1e-9, limits={"max_iter": 1_000_000}),
}  # fmt: skip
"""This module's part of the table."""
