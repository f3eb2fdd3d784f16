"""Mean IoU as the authors' evaluators count it; importing this module registers `LabelledIoU` with mmsegmentation."""

from typing import Any

import torch
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from torch import Tensor


@METRICS.register_module()
class LabelledIoU(IoUMetric):
    """Over the classes that have labelled pixels; mmsegmentation's own counts one that is only predicted as 0."""

    @staticmethod
    def total_area_to_metrics(
        total_area_intersect: Tensor, total_area_union: Tensor, total_area_pred_label: Tensor, total_area_label: Tensor,
        *options: Any, **named: Any,
    ) -> Any:  # fmt: skip
        """As the base class, with no number for a class without label: the mean passes over it."""
        nothing = torch.full_like(total_area_union, float("nan"))
        union = torch.where(total_area_label > 0, total_area_union, nothing)
        areas = (total_area_intersect, union, total_area_pred_label, total_area_label)
        return IoUMetric.total_area_to_metrics(*areas, *options, **named)
