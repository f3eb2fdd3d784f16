"""One configuration written as a file that runs without this package: torch.export or ONNX, any size of batch."""

import math
from pathlib import Path

import torch

from paperkit.errors import UserError
from paperkit.export import export_onnx, export_program
from paperkit.files.hub import replaced_folder
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
        UserError: if the file cannot be written, or its logits differ from the network's; the folder is then as it was.
    """
    model = SubNetwork(source.network, config_id).eval()
    example = torch.randn(2, *source.input_size, generator=torch.Generator().manual_seed(2))
    path = folder / ("model.pt2" if to == "torch" else "model.onnx")
    with replaced_folder(folder) as temporary:
        if to == "torch":
            model.save(temporary, source.description)
        error = (export_program if to == "torch" else export_onnx)(model, example, temporary / path.name)
        if math.isnan(error):
            raise UserError(f"{path} was not written: its logits are not numbers, or onnxruntime is not installed")
        if error > LARGEST:
            raise UserError(f"{path} was not written: it would differ from the network by {error:.3g}")
    return path, model, error
