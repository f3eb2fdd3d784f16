"""The whole detector: a backbone and AFSD's pyramid and heads, under the names of AFSD's checkpoints.

Settings of a network are plain values, so that they stand in a config, a run folder or a weight file:

    {"backbone": {"name": "stpt", "kinds": "LLGG"}, "detector": {"num_classes": 21, "frames": 256}, "size": [96, 96]}

Shapes: B clips, T frames, H height, W width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.hub import SavedInFolder
from stpt.method.detector import Detector
from stpt.models.networks import BACKBONES, create_backbone

SETTINGS = ("backbone", "detector", "size", "classes", "fps")
MOST = 2**31
"""Pixels of a clip: those of 256 frames at 2896 x 2896."""
RIGHT = {
    "backbone": "a name, or options by name",
    "detector": "options by name",
    "size": "a height and a width",
    "classes": "a list of names",
}
"""What settings of a wrong type should be."""


class STPT(
    nn.Module,
    SavedInFolder,
    library_name="stpt",
    pipeline_tag="video-classification",
    repo_url="https://github.com/ziplab/STPT",
    paper_url="https://arxiv.org/abs/2207.10448",
):
    """A whole network with fresh weights; the defaults are those for THUMOS14.

    Args:
        backbone: `name` of `stpt.models.networks.BACKBONES`, with changes of it, or the name alone.
        detector: arguments of `stpt.method.detector.Detector`; channels and sizes of the maps are the backbone's.
        size: height and width of clips, in pixels; the pyramid squeezes maps of that size.
        classes: names of the classes from 1 on, if known. fps: frames per second that it was trained on, if known.

    Raises:
        UserError: an unknown backbone, or arguments that do not fit each other.

    Attributes:
        settings: the arguments, as plain values.

    Example:
        >>> outputs = STPT("stpt").eval()(clips)  # (1, 3, 256, 96, 96) in [-1, 1] -> loc (1, 126, 2), conf, ...
    """

    def __init__(
        self,
        backbone: str | Mapping[str, Any] = "stpt",
        detector: Mapping[str, Any] | None = None,
        size: Sequence[int] = (96, 96),
        classes: Sequence[str] | None = None,
        fps: float | None = None,
    ) -> None:
        super().__init__()
        given = dict(backbone=(backbone, str | Mapping), detector=(detector or {}, Mapping),
                     size=(size, Sequence), classes=(classes or (), Sequence))  # fmt: skip
        if wrong := [name for name, (value, kind) in given.items() if not isinstance(value, kind)]:
            raise UserError(f"setting {wrong[0]} is {given[wrong[0]][0]!r}; right would be {RIGHT[wrong[0]]}")
        chosen: dict[str, Any] = {"name": backbone} if isinstance(backbone, str) else dict(backbone)
        head: dict[str, Any] = dict(detector or {})
        frames = head.get("frames", 256)
        if len(size) != 2 or not all(isinstance(side, int) and side >= 1 for side in (frames, *size)):
            raise UserError(
                f"clips of {frames} frames and size {list(size)}: need one frame, a height and a width at least"
            )
        if frames * size[0] * size[1] > MOST:
            raise UserError(f"clips of {frames} x {size[0]} x {size[1]} pixels: {MOST:,} is the most")
        if fps is not None and not (isinstance(fps, int | float) and fps > 0):
            raise UserError(f"setting fps is {fps!r}; right would be a number above 0")
        if {**BACKBONES.get(str(chosen.get("name")), {}), **chosen}.get("pos_embed") == "abs":
            chosen.setdefault("size", [frames, *size])
        self.backbone = create_backbone(**chosen)
        maps = self.backbone.map_sizes(frames, *size)
        found = dict(in_channels=self.backbone.out_channels, map_sizes=tuple(tuple(sides[1:]) for sides in maps))
        try:
            self.coarse_pyramid_detection = Detector(**{**found, **head})
        except (TypeError, ValueError) as error:
            raise UserError(f"detector: {error}") from error
        background_too = head.get("num_classes", 21)
        if not all(isinstance(name, str) for name in classes or ()):
            raise UserError("setting classes holds what is no name")
        if classes is not None and len(classes) != background_too - 1:
            raise UserError(f"{len(classes)} names for {background_too - 1} classes and the background")
        self.settings: dict[str, Any] = {
            "backbone": chosen,
            "detector": head,
            "size": list(size),
            "classes": None if classes is None else list(classes),
            "fps": fps,
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "STPT":
        """The network of plain settings: the constructor's arguments by name.

        Raises:
            UserError: a name that is none of them, or as the constructor.
        """
        if unknown := settings.keys() - set(SETTINGS):
            raise UserError(f"unknown settings {', '.join(sorted(unknown))}; known are {', '.join(SETTINGS)}")
        return cls(**settings)

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """(B, 3, T, H, W) in [-1, 1] -> the detector's outputs by name.

        Raises:
            UserError: clips of another size than the network's.
        """
        if clips.ndim != 5 or list(clips.shape[3:]) != self.settings["size"]:
            height, width = self.settings["size"]
            channels = self.settings["backbone"].get("in_channels", 3)
            raise UserError(f"clips {tuple(clips.shape)}; this network takes (B, {channels}, T, {height}, {width})")
        return self.coarse_pyramid_detection(self.backbone(clips))
