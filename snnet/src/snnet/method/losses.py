"""The loss of a joint training step (paper, section 3.4): cross entropy and distillation from a teacher, per stitch.

Shapes: B batch, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from paperkit.errors import UserError
from paperkit.training.classification import Distillation, classification_loss, distillation_loss
from snnet.method.stitching import StitchedNetwork


@dataclass(frozen=True)
class StitchLoss:
    """L = (1 - alpha) CE + alpha KD for one configuration or several.

    Args:
        smoothing: label smoothing, for labels that mixup has not smoothed already.
        distillation: `none`, `hard` (the teacher's choice) or `soft` (its distribution, divided by B K as released).
        alpha: weight of the distillation term.
        tau: temperature of soft distillation.
    """

    smoothing: float = 0.1
    distillation: Distillation = "none"
    alpha: float = 0.5
    tau: float = 1.0

    def __call__(
        self,
        network: StitchedNetwork,
        images: Tensor,
        target: Tensor,
        config_ids: Sequence[int],
        teacher: Tensor | None,
    ) -> Tensor:
        """Mean loss over a batch that is split into equal chunks, one configuration each.

        Eight chunks do in one process what eight ranks with an id each do together.

        Args:
            images: (B, 3, H, W).
            target: labels (B,) or probabilities (B, K).
            config_ids: one id per chunk.
            teacher: the teacher's logits (B, K), needed unless `distillation` is none.
        """
        if len(images) < len(config_ids):
            raise UserError(f"a batch of {len(images)} images cannot be split over {len(config_ids)} stitches per step")
        total = images.new_zeros(())
        bounds = [len(images) * i // len(config_ids) for i in range(len(config_ids) + 1)]
        for config_id, start, stop in zip(config_ids, bounds[:-1], bounds[1:], strict=True):
            chunk = slice(start, stop)
            logits = network(images[chunk], config_id)
            loss = self.of_logits(logits, target[chunk], None if teacher is None else teacher[chunk])
            total = total + loss * ((stop - start) / len(images))
        return total

    def of_logits(self, logits: Tensor | tuple[Tensor, Tensor], target: Tensor, teacher: Tensor | None) -> Tensor:
        """The loss of one chunk. LeViT has two heads: the first learns from the labels, the second from the teacher."""
        by_label, by_teacher = (logits, logits) if isinstance(logits, Tensor) else logits
        base = classification_loss(by_label, target, self.smoothing)
        if teacher is None:
            return base
        return distillation_loss(base, by_teacher, teacher, self.distillation, self.alpha, self.tau)
