"""LITv2 as a pyramid backbone for dense prediction (section 4.2 and 4.3 of the paper): maps c2 to c5.

Shapes: B batch, D embed_dim, stage i has C_i = D * 2^i channels and H_i x W_i tokens.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from litv2.models.classifier import IN_FOLDER
from litv2.models.pyramid import Pyramid
from paperkit.errors import UserError
from paperkit.files.hub import SavedInFolder

SEGMENTATION_NORMS = (0, 1, 2, 3)
DETECTION_NORMS = (1, 2, 3)  # the authors' detectors take c2 as it is


class LITv2Backbone(Pyramid, SavedInFolder, **IN_FOLDER):
    """Outputs of the stages before their merging, each through a LayerNorm of its own where there is one.

    Args:
        out_indices: stages that are returned.
        out_norms: stages whose output is normalised: all four in segmentation, not the first in detection.
        grad_checkpointing: recompute blocks in the backward pass (the paper's B detectors).
        pyramid: everything else goes to `litv2.models.pyramid.Pyramid`.

    The BatchNorms of the mergings stay in training mode while fine-tuning, as the authors' do.
    """

    weights_metadata = {"format": "pt"}  # noqa: RUF012

    def __init__(
        self,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        out_norms: Sequence[int] = SEGMENTATION_NORMS,
        grad_checkpointing: bool = False,
        **pyramid: Any,
    ) -> None:
        super().__init__(**pyramid)
        stages = range(self.num_stages)
        if not set(out_indices) <= set(stages) or not set(out_norms) <= set(stages):
            raise UserError(
                f"out_indices {list(out_indices)} and out_norms {list(out_norms)} must lie in {list(stages)}"
            )
        self.out_indices, self.out_norms = tuple(out_indices), tuple(out_norms)
        width = self.num_features // 2 ** (self.num_stages - 1)
        self.out_channels = [width * 2**i for i in self.out_indices]
        for i in out_norms:
            self.add_module(f"norm{i}", nn.LayerNorm(width * 2**i))
        self.set_grad_checkpointing(grad_checkpointing)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) of any size -> maps (B, C_i, H_i, W_i), contiguous."""
        maps = []
        for i, x in enumerate(self.stages(image)):
            if i in self.out_indices:
                y = getattr(self, f"norm{i}")(x) if i in self.out_norms else x
                maps.append(y.permute(0, 3, 1, 2).contiguous())
        return tuple(maps)
