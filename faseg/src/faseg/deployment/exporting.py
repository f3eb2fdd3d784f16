"""The network outside of Python: a torch.export program with free batch (and sizes), and ONNX of one size.

Input: normalised pictures (B, 3, H, W), sides padded to multiples of 32, as `faseg.models.faseg.padded_batch` makes
them. Outputs: `logits` (B, Q, K + 1) and `masks` (B, Q, H / 4, W / 4), from which
`faseg.method.semantic_inference.semantic_scores` makes class scores (a softmax, a sigmoid and a product).
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from faseg.models.faseg import DIVISOR, FASeg
from faseg.models.resnet import ResNet
from paperkit.errors import UserError
from paperkit.export import export_onnx, export_program

LARGEST = 128
"""Times 32 pixels: the largest side of an exported program."""


class Queries(nn.Module):
    """The last layer's predictions of a network, as a tuple of tensors; the network's weights lose their gradients."""

    def __init__(self, network: FASeg) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> logits (B, Q, K + 1), masks (B, Q, H / 4, W / 4)."""
        outputs = self.network(images, masks="last")
        return outputs["pred_logits"], outputs["pred_masks"]


def to_program(model: FASeg, path: Path, size: tuple[int, int] | None = None) -> float:
    """Writes a torch.export program for any batch.

    Args:
        size: height and width of its pictures; None for all multiples of 32 px up to 4096 (see `free_sizes`).

    Returns:
        The largest difference of an output from the network's, on another batch (and size, where that is free).

    Raises:
        UserError: the network cannot be exported, the file not written, or a size that is not in multiples of 32.
    """
    if size is not None:
        return export_program(Queries(model), _pictures(2, *size), path, second=_pictures(1, *size))
    height, width = (DIVISOR * Dim(name, min=1, max=LARGEST) for name in ("rows", "columns"))
    shapes = ({0: Dim("batch", min=1, max=1024), 2: height, 3: width},)
    example, second = _pictures(2, 96, 128), _pictures(1, 128, 96)
    return export_program(Queries(model), example, path, dynamic_shapes=shapes, second=second, check_guards=False)


def to_onnx(model: FASeg, path: Path, size: tuple[int, int]) -> float:
    """Writes ONNX for one picture size and any batch, by torch's dynamo exporter; onnxruntime runs it.

    Args, Returns and Raises:
        As `to_program`; besides, UserError for pictures too small for one window, which onnxruntime does not read.
    """
    decoder, cells = model.sem_seg_head.predictor, size[0] * size[1] // DIVISOR**2
    if decoder.hrca and max(cells // decoder.omega, decoder.min_windows) < 1:
        raise UserError(
            f"size {size[0]} x {size[1]} has {cells} cells of {DIVISOR} px, and omega {decoder.omega} keeps none; ONNX "
            f"needs a size of at least {decoder.omega} cells"
        )
    example, second = _pictures(2, *size), _pictures(1, *size)
    return export_onnx(Queries(model), example, path, second=second, output_names=("logits", "masks"))


def free_sizes(model: FASeg) -> bool:
    """Whether a program of this network may have free sizes: a Swin's windows and masks follow from one size."""
    return isinstance(model.backbone, ResNet)


def load_program(path: Path) -> nn.Module:
    """A saved program as a module. Without torch's guards, some of which only note which memory layout was traced."""
    return torch.export.load(path).module(check_guards=False)


def _pictures(batch: int, height: int, width: int) -> Tensor:
    if height % DIVISOR or width % DIVISOR or min(height, width) < DIVISOR:
        raise UserError(f"size {height} x {width}: give multiples of {DIVISOR}, to which pictures are padded")
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))
