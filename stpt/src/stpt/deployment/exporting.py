"""The detector outside of Python: a torch.export program and ONNX, from clips to decoded segments and scores.

Input `clips` (B, 3, T, H, W) in [-1, 1], of the network's length and size and any number. Outputs `segments` (B, K, 2)
in frames of the clip and `scores` (B, K, N), the background first. What is left is soft-NMS over a video's windows,
`stpt.method.soft_nms.detections`.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from paperkit.export import export_onnx, export_program
from stpt.method.decoding import decode
from stpt.models.stpt import STPT


class Decoded(nn.Module):
    """A network with its decoding; the network's weights lose their gradients.

    Args:
        network: put into eval mode.
    """

    def __init__(self, network: STPT) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.frames: int = network.settings["detector"].get("frames", 256)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, T, H, W) -> segments (B, K, 2), scores (B, K, N)."""
        return decode(self.network(clips), self.frames)


def to_program(network: STPT, path: Path) -> float:
    """Writes a torch.export program for any number of clips.

    Returns:
        The largest difference of an output from the network's, on another clip.

    Raises:
        UserError: the network cannot be exported, or the file not written.
    """
    return export_program(Decoded(network), _clips(network, 2), path, second=_clips(network, 1))


def to_onnx(network: STPT, path: Path) -> float:
    """Writes ONNX by torch's dynamo exporter; compared with onnxruntime's outputs. Else as `to_program`."""
    names = {"input_name": "clips", "output_names": ("segments", "scores")}
    return export_onnx(Decoded(network), _clips(network, 2), path, second=_clips(network, 1), **names)  # type: ignore[arg-type]


def _clips(network: STPT, batch: int) -> Tensor:
    """Made clips of the network's size: noise that moves slowly, since even pictures would leave nothing to compare."""
    frames, (height, width) = network.settings["detector"].get("frames", 256), network.settings["size"]
    coarse = torch.rand(batch, 3, frames // 4, height // 4, width // 4, generator=torch.Generator().manual_seed(batch))
    return nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear") * 2 - 1
