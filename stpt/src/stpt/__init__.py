"""STPT: an efficient spatio-temporal pyramid transformer for action detection (arXiv 2207.10448).

    from stpt import STPT, load_network
    outputs = STPT("stpt").eval()(clips)  # clips (B, 3, 256, 96, 96) in [-1, 1]

Names are loaded when they are first used, so that the command line answers at once.
"""

import importlib
from typing import Any

_HOMES = {
    "GlobalAttention": "method.attention",
    "LocalAttention": "method.attention",
    "Backbone": "method.backbone",
    "DetectionLoss": "method.losses",
    "Detector": "method.detector",
    "boundary_max_pooling": "method.boundary_pooling",
    "count_macs": "method.macs",
    "decode": "method.decoding",
    "soft_nms": "method.soft_nms",
    "BACKBONES": "models.networks",
    "create_backbone": "models.networks",
    "I3D": "models.i3d",
    "STPT": "models.stpt",
    "load_backbone": "models.conversion",
    "load_network": "models.conversion",
    "save_network": "models.conversion",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"stpt.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'stpt' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
