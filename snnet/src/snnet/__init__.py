"""SN-Net: pretrained models stitched into one network with many speed/accuracy points (CVPR 2023, arXiv 2302.06586).

network = snnet.stitch(["deit_tiny_patch16_224", "deit_small_patch16_224"], pretrained=True)
snnet.initialise(network, [images])
logits = network.set_stitch(5)(images)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snnet.deployment.extraction import SubNetwork
    from snnet.method.budget import OperatingPoint, operating_points, select
    from snnet.method.least_squares import initialise
    from snnet.method.stitching import StitchedNetwork
    from snnet.models.anchors import SNNet, stitch

_HOMES = {
    "SNNet": "models.anchors",
    "stitch": "models.anchors",
    "OperatingPoint": "method.budget",
    "operating_points": "method.budget",
    "select": "method.budget",
    "SubNetwork": "deployment.extraction",
    "initialise": "method.least_squares",
    "StitchedNetwork": "method.stitching",
}
__all__ = [
    "OperatingPoint",
    "SNNet",
    "StitchedNetwork",
    "SubNetwork",
    "initialise",
    "operating_points",
    "select",
    "stitch",
]


def __getattr__(name: str) -> Any:
    """Import on first use: the command line's `--help` must not wait for torch."""
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(f"snnet.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'snnet' has no attribute {name!r}")
