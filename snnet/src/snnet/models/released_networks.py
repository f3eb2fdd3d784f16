"""The five released SN-Nets by short name: anchors, checkpoint, and what the authors measured of every stitch."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from paperkit.errors import UserError
from snnet.method.stitching import StitchedNetwork
from snnet.models.anchors import AnchorName, SNNet, stitch
from snnet.models.official import read_official


@dataclass(frozen=True)
class Released:
    """One released SN-Net.

    Attributes:
        anchors: timm tags, fast to slow; their weights are those that joint training started from.
        file: the authors' checkpoint (releases v1.0 to v1.2 of their repository).
        stitched_final_norm: whether its weights were trained with the final norm in stitched paths.
    """

    anchors: tuple[str, ...]
    file: str
    stitched_final_norm: bool = True


@dataclass(frozen=True)
class ReleasedStitch:
    """The authors' figures of one configuration: a fact each, recomputed nowhere but for `flops` and `params`.

    Attributes:
        flops: multiply-adds of one image of 224 x 224.
        params: parameters as they reported them (see `counting.reported_parameters`), None where they did not.
        acc1, acc5: ImageNet-1k accuracy in percent; loss: cross entropy.
    """

    id: int
    anchors: tuple[int, ...]
    stage: int | None
    cut: tuple[int, int] | None
    layer: int | None
    flops: int
    params: int | None
    acc1: float
    acc5: float | None
    loss: float | None


def build(
    name: str,
    num_classes: int = 1000,
    pretrained: bool | str = False,
    drop_path_rate: float | None = None,
    **options: Any,
) -> StitchedNetwork:
    """A released architecture, with its anchors' pretrained weights or with random ones.

    Args:
        name: one of `RELEASED`.
        pretrained: False, True or a folder of the anchors' weights, see `anchors.create_anchor`. The joint weights come
            from `official.read_official`.
        drop_path_rate: for every anchor; None keeps timm's.
        options: of `anchors.SNNet`, over those that the released weights need.
    """
    released = find(name)
    anchors: list[AnchorName] = list(released.anchors)
    if drop_path_rate is not None:
        anchors = [{"name": anchor, "drop_path_rate": drop_path_rate} for anchor in released.anchors]
    options = {"stitched_final_norm": released.stitched_final_norm, **options}
    return stitch(anchors, pretrained, num_classes, **options)


def build_on_meta(name: str) -> StitchedNetwork:
    """A released architecture without numbers, for counting and for its keys."""
    with torch.device("meta"):
        return build(name)


def read_released(
    name: str, weights: str | Path | None = None, trust_pickle: bool = False, part: str | None = None
) -> tuple[SNNet, dict[str, Any]]:
    """A released SN-Net with the weights of the authors' file (None: random ones), and the arguments that built it."""
    released = find(name)
    description: dict[str, Any] = {
        "anchors": list(released.anchors),
        "stitched_final_norm": released.stitched_final_norm,
    }
    network = SNNet(**description)
    if weights is not None:
        read_official(network, weights, trust_pickle, part)
    return network, description


def find(name: str) -> Released:
    """The released SN-Net of that short name; UserError if there is none."""
    if name not in RELEASED:
        raise UserError(f"no released SN-Net is called {name!r}; there are {', '.join(RELEASED)}")
    return RELEASED[name]


@cache
def released_stitches(name: str) -> tuple[ReleasedStitch, ...]:
    """The authors' figures of every configuration of a released SN-Net, by id."""
    find(name)
    rows = json.loads((files("snnet") / "published" / f"{name}.json").read_text())
    return tuple(
        ReleasedStitch(
            **{**row, "anchors": tuple(row["anchors"]), "cut": None if row["cut"] is None else tuple(row["cut"])}
        )
        for row in rows
    )


RELEASED = {
    "deit_ti_s_b": Released(
        tuple(f"deit_{size}_patch16_224.fb_in1k" for size in ("tiny", "small", "base")),
        "snnet_deit.pth",
        stitched_final_norm=False,
    ),
    "swin_ti_s_b": Released(
        tuple(f"swin_{size}_patch4_window7_224.ms_in22k_ft_in1k" for size in ("tiny", "small", "base")),
        "snnet_swin.pth",
    ),
    "levit_192_256": Released(("levit_192.fb_dist_in1k", "levit_256.fb_dist_in1k"), "levit_192_256_release.pth"),
    "resnet18_resnet50": Released(("resnet18.tv_in1k", "resnet50.a1_in1k"), "resnet_18_50.pth"),
    "resnet18_swin_ti": Released(("resnet18.tv_in1k", "swin_tiny_patch4_window7_224.ms_in1k"), "resnet18_swin_ti.pth"),
}
