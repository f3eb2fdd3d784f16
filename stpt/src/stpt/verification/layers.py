"""Reference files of I3D's layers and of AFSD's convolutions: kind i3d_and_layers.

Groups of tensors by name: `inception`, `stem` (a convolution with BatchNorm and ReLU) with inputs `even`, `odd`, ...,
`maxpool.pKKK` (a maximum of the stem's inputs), `unit1d` (stride 2) and `squeeze` (a convolution as large as the map).
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.weights import load_strict
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import Kind
from stpt.method.convolutions import Unit1D, Unit3D
from stpt.models.i3d import Inception, same_max_pool

STRIDES = {(1, 3, 3): (1, 2, 2), (2, 2, 2): (2, 2, 2), (3, 3, 3): (2, 2, 2)}
"""Of I3D's pools between layers, by kernel."""


def recompute_layers(file: ReferenceFile) -> Mapping[str, Tensor]:
    """Every layer that the file has weights of, on each of its inputs, and the pools that it has results of."""
    computed: dict[str, Tensor] = {}
    with torch.no_grad():
        for part, build in LAYERS.items():
            inputs = file.part(f"in.{part}.")
            if not inputs:
                continue
            layer = build(file)
            load_strict(layer.double(), file.part(f"sd.{part}."), f"the file's sd.{part}.*")
            layer.eval()
            for name, x in inputs.items():
                computed[f"out.{part}.{'y' if name == 'x' else name}"] = layer(x.double())
        for name in file.part("out.maxpool."):
            pool, _, case = name.partition(".")
            kernel = _kernel(pool)
            x = file.inputs[f"stem.{case}"]
            computed[f"out.maxpool.{name}"] = same_max_pool(x, kernel, STRIDES[kernel])
    return computed


def _kernel(name: str) -> tuple[int, int, int]:
    """`p133` -> (1, 3, 3)."""
    if not re.fullmatch(r"p\d\d\d", name) or (kernel := tuple(map(int, name[1:]))) not in STRIDES:
        known = ", ".join("p" + "".join(map(str, kernel)) for kernel in STRIDES)
        raise UserError(f"unknown pool {name!r} among out.maxpool.*; known: {known}")
    return kernel[0], kernel[1], kernel[2]


def _inception(file: ReferenceFile) -> nn.Module:
    channels, widths = file.config["inception"]
    if file.config.get("bn_eps", 1e-3) != 1e-3:
        raise UserError(f"option bn_eps is {file.config['bn_eps']!r}; I3D's is 0.001")
    if not isinstance(widths, list) or len(widths) != 6:
        raise UserError("option inception must be the channels and the widths of six branches")
    return Inception(channels, widths)


def _stem(file: ReferenceFile) -> nn.Module:
    out, channels, *kernel = _shape(file, "sd.stem.conv3d.weight", 5)
    return Unit3D(channels, out, (kernel[0], kernel[1], kernel[2]), (2, 2, 2))


def _unit1d(file: ReferenceFile) -> nn.Module:
    out, channels, kernel = _shape(file, "sd.unit1d.conv1d.weight", 3)
    return Unit1D(channels, out, kernel, stride=2)


def _squeeze(file: ReferenceFile) -> nn.Module:
    out, channels, *kernel = _shape(file, "sd.squeeze.conv3d.weight", 5)
    return Unit3D(channels, out, (kernel[0], kernel[1], kernel[2]), spatial_valid=True, norm=False)


def _shape(file: ReferenceFile, name: str, axes: int) -> tuple[int, ...]:
    shape = tuple(file.tensors[name].shape)
    if len(shape) != axes:
        raise UserError(f"{name} has {len(shape)} axes instead of {axes}")
    return shape


LAYERS: dict[str, Callable[[ReferenceFile], nn.Module]] = {
    "inception": _inception,
    "stem": _stem,
    "unit1d": _unit1d,
    "squeeze": _squeeze,
}
KINDS = {"i3d_and_layers": Kind(recompute_layers, tolerance=1e-5, options=("inception", "bn_eps"))}
