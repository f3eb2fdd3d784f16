"""One configuration written as a file that runs without this package: torch.export or ONNX, any size of batch."""

import math
from pathlib import Path

import torch

from paperkit.errors import UserError
from paperkit.export import export_onnx, export_program
from snnet.deployment.extraction import SubNetwork
from snnet.deployment.source import Source

LARGEST = 1e-3
"""Difference of logits above which a file is not that network."""


def export(source: Source, config_id: int, to: str, folder: Path) -> tuple[Path, SubNetwork, float]:
    """Write one configuration, with only its own parameters.

    Args:
        to: `torch` writes `model.pt2`, a program of torch.export, beside `model.safetensors` and `config.json`, which
            `SubNetwork.load` reads; `onnx` writes `model.onnx`.

    Returns:
        The file, the network in it, and the largest difference of their logits on random images.

    Raises:
        UserError: if the file cannot be written, or its logits differ from the network's.
    """
    model = SubNetwork(source.network, config_id).eval()
    example = torch.randn(2, *source.input_size, generator=torch.Generator().manual_seed(2))
    if to == "torch":
        path = folder / "model.pt2"
        model.save(folder, source.description)
        error = export_program(model, example, path)
    else:
        path = folder / "model.onnx"
        error = export_onnx(model, example, path)
    if math.isnan(error):
        raise UserError(f"{path} was not compared: its logits are not numbers, or onnxruntime is not installed")
    if error > LARGEST:
        raise UserError(f"the exported file differs from the network by {error:.3g}; do not use {path}")
    return path, model, error
