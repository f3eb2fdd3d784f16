"""LITv2: HiLo attention, a fast backbone for classification, detection and segmentation (arXiv 2205.13213).

    from litv2 import HiLo, LITv2, architecture
    import litv2, timm; timm.create_model("litv2_s", num_classes=10)

Importing the package registers its models in timm. Names are loaded when they are first used, and timm's registry is
filled when timm is there or arrives, so that the command line answers at once.
"""

import importlib
from typing import Any

from paperkit.doors.timm_arrival import when_timm_arrives

_HOMES = {
    "HiLo": "method.hilo",
    "ConvFFN": "method.conv_ffn",
    "DeformableMerging": "method.deformable_merging",
    "Pyramid": "models.pyramid",
    "architecture": "models.pyramid",
    "LITv2": "models.classifier",
    "LITv2Backbone": "models.backbone",
    "fuse": "deployment.fused",
    "load_released": "models.released",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"litv2.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'litv2' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


when_timm_arrives("litv2.models.timm_models")
