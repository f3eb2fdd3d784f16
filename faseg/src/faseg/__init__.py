"""FASeg: dynamic focus-aware positional queries for semantic segmentation (arXiv 2204.01244).

    from faseg import FASeg, build
    import faseg, mmseg.apis  # configs of mmsegmentation may name FASegHead, FASegResNet and FASegSwin

Importing the package registers its parts in `mmseg.registry`. Names are loaded when they are first used, and the
registry is filled when mmsegmentation is there or arrives, so that the command line answers at once.
"""

import importlib
from typing import Any

from paperkit.doors.arrival import when_arrives

_HOMES = {
    "PixelDecoder": "method.pixel_decoder",
    "DeformableAttention": "method.deformable_attention",
    "Decoder": "method.decoder",
    "Criterion": "method.criterion",
    "Matcher": "method.matcher",
    "Targets": "method.matcher",
    "FASeg": "models.faseg",
    "SegmentationHead": "models.faseg",
    "build": "models.faseg",
    "semantic_scores": "method.semantic_inference",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"faseg.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'faseg' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


when_arrives("mmseg.registry", "faseg.models.mm_head")
