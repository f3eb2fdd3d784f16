"""AFSD's losses: of coarse and refined segments and classes, of the quality, and of frames at boundaries (3.5).

Shapes: B clips, K cells, N classes with the background (0), T frames, C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpt.method.decoding import refined_distances
from stpt.method.targets import LEVEL_RANGES, Matched, match

EPS = torch.finfo(torch.float32).eps
_ONES = dict.fromkeys(("loss_l", "loss_c", "loss_prop_l", "loss_prop_c", "loss_ct", "loss_start", "loss_end"), 1.0)
WEIGHTS = {"thumos": {**_ONES, "loss_l": 10.0, "loss_prop_l": 10.0}, "activitynet": _ONES}
PIOU = {"thumos": 0.5, "activitynet": 0.6}
PROPOSAL_ACTIVATION = 0.1
"""Weight of the boundary-sensitive features of level 0 beside the frame-level ones."""


def _overlap(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Intersection, union, and length of the prediction, of distance pairs (..., 2) from one centre."""
    inter = torch.minimum(pred, target).sum(-1)
    length = pred.sum(-1)
    return inter, target.sum(-1) + length - inter, length


def iou(pred: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of distance pairs (..., 2) -> (...). Negative distances give what the formula gives."""
    inter, union, _ = _overlap(pred, target)
    return inter / union.clamp(min=EPS)


def linear_iou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - IoU."""
    return 1 - iou(pred, target)


def giou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - (IoU - share of the hull outside of the union) (Rezatofighi et al., CVPR 2019)."""
    inter, union, _ = _overlap(pred, target)
    hull = torch.maximum(pred, target).sum(-1)
    return 1 - (inter / union.clamp(min=EPS) - (hull - union) / hull.clamp(min=EPS))


def intersection_over_length(pred: Tensor, target: Tensor) -> Tensor:
    """Share of the prediction that lies in the target."""
    inter, _, length = _overlap(pred, target)
    return inter / length.clamp(min=EPS)


@dataclass(frozen=True)
class Focal:
    """Softmax focal loss (Lin et al., ICCV 2017) with the background as a class, which AFSD weighs down.

    Args:
        alpha_background, alpha_other: weights of the classes.
        gamma: exponent of what is missing to certainty.
        eps: added to the probability.
    """

    alpha_background: float = 0.25
    alpha_other: float = 0.75
    gamma: float = 2.0
    eps: float = 1e-6

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(..., N) and int64 (...) -> (...)."""
        chance = logits.softmax(-1).gather(-1, labels[..., None])[..., 0] + self.eps
        alpha = torch.where(labels == 0, self.alpha_background, self.alpha_other)
        return -alpha * (1 - chance) ** self.gamma * chance.log()


def activation_loss(features: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy between mean over channels of tanh and a mask of 0 and 1; mean over frames.

    Args:
        features: (B, T, C), after a ReLU. mask: (B, T).
    """
    return F.binary_cross_entropy(features.tanh().mean(-1), mask)


def sampled(mask: Tensor, factor: int, length: int) -> Tensor:
    """Every `factor`-th frame of a mask (..., T), `length` of them: what nearest interpolation takes."""
    return mask[..., ::factor][..., :length]


class DetectionLoss(nn.Module):
    """All of AFSD's losses but the triplet loss on cut clips (`stpt.method.consistency`).

    Args:
        variant: `thumos`: normalised by the positive cells of the whole batch; every cell may learn every action.
            `activitynet`: by those of each clip, then the mean over clips; a level learns lengths of its range, the
            refinement by smooth L1, and the best positive cell of a clip is refined whatever its IoU.
        frames: of the clip.
        weights: by the names of the losses, in place of those of the variant; 0 leaves a loss out of the sum.
        piou: IoU from which a coarse segment's refinement learns; the variant's own if None (0.5 and 0.6).
        focal: of the class losses.
        detach_quality_target: the IoU that `center` learns sends no gradient on. In AFSD it does.

    Raises:
        ValueError: an unknown variant, or a weight of no loss.
    """

    def __init__(
        self,
        variant: Literal["thumos", "activitynet"] = "thumos",
        frames: int = 256,
        weights: Mapping[str, float] | None = None,
        piou: float | None = None,
        focal: Focal | None = None,
        detach_quality_target: bool = False,
    ) -> None:
        super().__init__()
        if variant not in WEIGHTS:
            raise ValueError(f"variant {variant!r} is none of {', '.join(WEIGHTS)}")
        if strange := sorted((weights or {}).keys() - WEIGHTS[variant].keys()):
            raise ValueError(f"weight of {strange[0]!r}; the losses are {', '.join(WEIGHTS[variant])}")
        self.variant, self.frames = variant, frames
        self.weights = {**WEIGHTS[variant], **(weights or {})}
        self.piou = PIOU[variant] if piou is None else piou
        self.focal = focal or Focal()
        self.detach_quality_target = detach_quality_target

    def forward(
        self,
        outputs: Mapping[str, Tensor],
        targets: Sequence[Tensor],
        start_mask: Tensor | None = None,
        end_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses by name, to be summed: `loss_l`, `loss_c`, and with a refinement the other five.

        Args:
            outputs: of the detector.
            targets: for each clip (n, 3): start and end in 0 to 1, label from 1 on.
            start_mask, end_mask: (B, T), 1 in frames at a boundary; without them there are no losses of frames.
        """
        wide = {name: x.to(torch.promote_types(x.dtype, torch.float32)) for name, x in outputs.items()}
        with torch.autocast(wide["loc"].device.type, enabled=False):
            losses = self.of_cells(wide, targets)
            if start_mask is not None and end_mask is not None and "start" in wide:
                losses |= {"loss_start": _at_boundaries(wide, "start", start_mask)}
                losses |= {"loss_end": _at_boundaries(wide, "end", end_mask)}
        return {name: self.weights[name] * loss for name, loss in losses.items()}

    def of_cells(self, outputs: Mapping[str, Tensor], targets: Sequence[Tensor]) -> dict[str, Tensor]:
        """The losses of cells before their weights: `loss_l`, `loss_c`, `loss_prop_l`, `loss_prop_c`, `loss_ct`."""
        loc, priors = outputs["loc"], outputs["priors"].flatten(0, -2)
        matched = match(priors, targets, self.frames, LEVEL_RANGES if self.variant == "activitynet" else None)
        positive = matched.labels > 0
        share = self._shares(positive)
        losses = {
            "loss_l": (share[positive] * giou_loss(loc[positive], matched.distances[positive])).sum(),
            "loss_c": (share * self.focal(outputs["conf"], matched.labels)).sum(),
        }
        return losses | (self._refined(outputs, matched, share) if "prop_loc" in outputs else {})

    def _refined(self, outputs: Mapping[str, Tensor], matched: Matched, share: Tensor) -> dict[str, Tensor]:
        loc, prop_loc, truth = outputs["loc"], outputs["prop_loc"], matched.distances
        positive = matched.labels > 0
        with torch.no_grad():
            coarse = iou(loc, truth)
            least = torch.full_like(coarse[:, :1], self.piou)
            if self.variant == "activitynet":
                best = torch.where(positive, coarse, -torch.inf).amax(1, keepdim=True)
                least = torch.minimum(least, best)
            near = positive & (coarse >= least)
            shift = (truth[near] - loc[near]) / (0.5 * loc[near].sum(1, keepdim=True))
        near_share = self._shares(near)
        distance = F.smooth_l1_loss if self.variant == "activitynet" else F.l1_loss
        quality = iou(refined_distances(loc[positive], prop_loc[positive]), truth[positive]).clamp(min=0)
        quality = quality.detach() if self.detach_quality_target else quality
        told = outputs["center"][..., 0][positive]
        labels = torch.where(near, matched.labels, 0)
        return {
            "loss_prop_l": (near_share[near] * distance(prop_loc[near], shift, reduction="none").sum(1)).sum(),
            "loss_prop_c": (near_share * self.focal(outputs["prop_conf"], labels)).sum(),
            "loss_ct": (share[positive] * F.binary_cross_entropy_with_logits(told, quality, reduction="none")).sum(),
        }

    def _shares(self, positive: Tensor) -> Tensor:
        """Weight of each cell (B, K): one over the positive cells of the batch, or of its clip and the clips."""
        if self.variant == "thumos":
            return (1 / positive.sum().clamp(min=1)).expand(positive.shape)
        return (1 / (positive.sum(1, keepdim=True).clamp(min=1) * len(positive))).expand(positive.shape)


def _at_boundaries(outputs: Mapping[str, Tensor], side: Literal["start", "end"], mask: Tensor) -> Tensor:
    """Activation losses of the frame-level features and, weighing less, of both branches' on level 0."""
    mask = mask.to(outputs[side].dtype)
    branches = [outputs[f"{side}_{branch}_prop"] for branch in ("loc", "conf")]
    cells = branches[0].shape[1]
    of_cells = sampled(mask, round(mask.shape[1] / cells), cells)
    of_branches = activation_loss(branches[0], of_cells) + activation_loss(branches[1], of_cells)
    return activation_loss(outputs[side], mask) + PROPOSAL_ACTIVATION * of_branches
