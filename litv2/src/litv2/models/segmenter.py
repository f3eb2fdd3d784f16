"""LITv2 in mmsegmentation's registry; it works with mmsegmentation's own tools as well.

Configs register it by `custom_imports = dict(imports=["litv2.models.segmenter", ...])`.
"""

from typing import Any

from mmseg.registry import MODELS

from litv2.models.backbone import SEGMENTATION_NORMS, LITv2Backbone
from litv2.models.pyramid import architecture
from litv2.models.released import fit_released, read_released
from paperkit.files.weights import load_strict


@MODELS.register_module()
class LITv2Segmentation(LITv2Backbone):
    """The backbone with four output norms.

    Args:
        name: published size.
        pretrained: released or own classifier file to start from; None for a fresh network.
        part: which of several state dicts in that file.
        out_norms: stages whose output is normalised.
        options: changes to the published size.
    """

    def __init__(
        self,
        name: str = "litv2_s",
        pretrained: str | None = None,
        out_norms: Any = SEGMENTATION_NORMS,
        part: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(out_norms=out_norms, **{**architecture(name), **options})
        if pretrained:
            load_strict(self, fit_released(read_released(pretrained, part=part), self), pretrained)
