"""A packed network as a folder: `config.json` and `model.safetensors`, without a float weight of a quantised layer.

`config.json` holds the format, diffusers' class and its settings, how it was quantised, the precision of the rest and
the form of each packed layer; the tensors are those of the network's state dict.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.atomic import write_atomic
from paperkit.files.bounded import read_json
from paperkit.files.keys import first_few
from paperkit.files.weights import check_finite, load_strict, read_safetensors, save_weights
from ptq4dm.deployment.packed_layers import PackedLayer
from ptq4dm.deployment.packed_unet import PackedUNet
from ptq4dm.models.latent_diffusion import FixedHeadsUNet2DModel

FORMAT, VERSION = "ptq4dm-packed", 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
CLASSES = {kind.__name__: kind for kind in (UNet2DModel, UNet2DConditionModel, FixedHeadsUNet2DModel)}
Rest = Literal["fp16", "fp32"]
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
RANGES = ("weight_delta", "weight_zero_point", "act_delta", "act_zero_point")
"""Always float32: a rounded step would move codes."""


def save_packed(packed: PackedUNet, folder: str | Path, rest: Rest = "fp16") -> None:
    """Writes a packed network of diffusers, each file whole or not at all.

    Args:
        rest: precision of norms, biases, embeddings and the layers that are not quantised.

    Raises:
        UserError: a network of another library, a rest that does not exist, numbers that fp16 cannot hold, a folder
            that cannot be written.
    """
    kind = type(packed.network).__name__
    if kind not in CLASSES:
        raise UserError(f"a {kind} cannot be saved packed; {', '.join(CLASSES)} can")
    if rest not in DTYPES:
        raise UserError(f"rest '{rest}' does not exist; known: {', '.join(DTYPES)}")
    state = {}
    for key, value in packed.network.state_dict().items():
        lowered = value.is_floating_point() and key.rpartition(".")[2] not in RANGES
        if lowered and rest == "fp16" and value.numel() and value.abs().max() > torch.finfo(torch.float16).max:
            raise UserError(f"{key} reaches {float(value.abs().max()):.3g}, above what fp16 holds; take --rest fp32")
        state[key] = value.to(DTYPES[rest]).contiguous() if lowered else value.contiguous()
    quantization: Any = getattr(packed.network, "quantization", None)
    settings = {key: value for key, value in dict(packed.config).items() if not key.startswith("_")}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "class": kind,
        "settings": settings,
        "quantization": asdict(quantization) if quantization is not None else {},
        "rest": rest,
        "widths": list(packed.widths),
        "schedule": {str(step): bits for step, bits in packed.schedule.items()},
        "layers": {name: layer.description for name, layer in packed.packed_layers().items()},
    }
    folder = Path(folder)
    save_weights(folder / WEIGHTS, state, {"format": FORMAT})
    write_atomic(folder / CONFIG, json.dumps(content, indent=1) + "\n")


def load_packed(folder: str | Path) -> PackedUNet:
    """The network of a folder that `save_packed` wrote.

    Raises:
        UserError: a missing, damaged or foreign folder; layers that the network does not have, or of other sizes;
            missing or unexpected tensors.
    """
    folder = Path(folder)
    told = _config(folder / CONFIG)
    state, _ = read_safetensors(folder / WEIGHTS)
    check_finite(state, folder / WEIGHTS)
    try:
        with torch.device("meta"):
            network: Any = CLASSES[told["class"]].from_config(told["settings"])
    except Exception as error:  # diffusers checks nothing, so that anything may come
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{folder / CONFIG}: no {told['class']} has these settings: {reason}") from error
    for name, form in told["layers"].items():
        _put(network, name, form, folder / CONFIG)
    expected = network.state_dict()
    if absent := [key for key in expected if key not in state]:  # before memory is asked for
        raise UserError(f"{folder / WEIGHTS} lacks {first_few(absent)}")
    for key, value in state.items():
        if key in expected and expected[key].shape != value.shape:
            raise UserError(
                f"{folder / WEIGHTS}: {key} has shape {tuple(value.shape)}, not {tuple(expected[key].shape)}"
            )
        floats = key in expected and value.is_floating_point() and expected[key].is_floating_point()
        if key in expected and not floats and value.dtype != expected[key].dtype:
            raise UserError(f"{folder / WEIGHTS}: {key} is {value.dtype}, not {expected[key].dtype}")
    network.to_empty(device="cpu")
    plain: dict[str, Tensor] = {key: v.float() if v.is_floating_point() else v for key, v in state.items()}
    load_strict(network, plain, str(folder / WEIGHTS))
    for name in told["layers"]:
        try:
            network.get_submodule(name).check()
        except ValueError as error:
            raise UserError(f"{folder / WEIGHTS}: {name} has {error}") from error
    rows = {len(form["act_bits"]) for form in told["layers"].values()}
    try:
        schedule = {int(step): int(bits) for step, bits in told["schedule"].items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{folder / CONFIG}: its schedule is no list of time steps and bits") from error
    if rows != {len(told["widths"])}:
        raise UserError(f"{folder / CONFIG}: {len(told['widths'])} widths, and layers with {sorted(rows)} ranges")
    return PackedUNet(network, told["widths"], schedule)


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"no {path}; `ptq4dm pack` writes such a folder")
    told = read_json(path, "description of a packed network")
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise UserError(f"{path} describes no packed network; `ptq4dm pack` writes one")
    if told.get("version") != VERSION:
        raise UserError(f"{path} has packed format version {told.get('version')!s:.20}; {VERSION} is read")
    if str(told.get("class")) not in CLASSES:
        raise UserError(f"{path}: class {told.get('class')!s:.40} is none of {', '.join(CLASSES)}")
    for key, kind in {"settings": dict, "layers": dict, "schedule": dict, "widths": list}.items():
        if not isinstance(told.get(key), kind):
            raise UserError(f"{path}: its {key} are missing")
    if not told["widths"] or not all(type(bits) is int for bits in told["widths"]):
        raise UserError(f"{path}: its widths are no bits: {told['widths']!s:.40}")
    return told


def _put(network: nn.Module, name: str, form: Any, path: Path) -> None:
    """An empty packed layer in the place of the float one."""
    try:
        old: Any = network.get_submodule(name)
        if type(old) not in (nn.Conv2d, nn.Linear):
            raise TypeError("no layer that is packed")
        expected = _form_of(old)
        if wrong := [key for key, value in expected.items() if form[key] != value]:
            key = wrong[0]
            raise UserError(f"{path}: {name} has {key} {form[key]!s:.40}, and the network's {expected[key]}")
        bits = [form["weight_bits"], *form["act_bits"]]
        if len(bits) < 2 or not all(type(b) is int and 2 <= b <= 8 for b in bits):
            raise UserError(f"{path}: {name} has {bits!s:.40} bits; 2 to 8 are possible")
        if type(form["per_channel"]) is not bool:
            raise TypeError("per_channel is true or false")
        new = PackedLayer(**{**form, "shape": tuple(form["shape"]), "act_bits": tuple(form["act_bits"])})
    except (AttributeError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: {name} is no layer of this network, or its description is damaged") from error
    parent, _, child = name.rpartition(".")
    for module in list(network.modules()):  # diffusers keeps some layers under two names
        for key, part in module.named_children():
            if part is old:
                setattr(module, key, new)
    assert network.get_submodule(parent)._modules[child] is new


def _form_of(old: Any) -> dict[str, Any]:
    """What a packed layer's description must say in the place of a float layer: the steps rely on it."""
    form = {"kind": "linear", "shape": list(old.weight.shape), "bias": old.bias is not None, "stride": 1, "padding": 0}
    if type(old) is nn.Conv2d:
        plain = old.groups == 1 and old.dilation == (1, 1) and old.padding_mode == "zeros"
        uneven = len({*old.stride}) > 1 or isinstance(old.padding, str) or len({*old.padding}) > 1
        if not plain or uneven:
            raise TypeError("a convolution that is not packed")
        form |= {"kind": "conv", "stride": old.stride[0], "padding": old.padding[0]}
    return form


def file_sizes(packed: PackedUNet) -> dict[str, int]:
    """Bytes: all tensors as float32, and the packed ones with the rest in fp16 and in fp32."""
    layers = packed.packed_layers()
    whole = sum(layer.shape.numel() for layer in layers.values())
    integers = sum(layer.weight_codes.numel() for layer in layers.values())
    ranges = sum(getattr(layer, name).numel() for layer in layers.values() for name in RANGES)
    everything = sum(value.numel() for value in packed.network.state_dict().values())
    rest = everything - integers - ranges
    return {"float32": 4 * (whole + rest), "fp16": integers + 4 * ranges + 2 * rest,
            "fp32": integers + 4 * (ranges + rest)}  # fmt: skip
