"""The packed file: safetensors with one bit per binary weight, and what is needed to build the network around it.

For each binary layer `NAME.weight_bits` uint8 [O, 8 ceil(I / 64)] (little-endian bits, 1 where the centred weight is
above 0, rows ended with zero bits), `NAME.scale` and `NAME.bias` [O]; the few weights that are exactly 0 as
`NAME.zero_weights`; every other tensor under timm's key. Metadata, all of it text or JSON: format and version,
architecture, num_classes, options (timm's sizes), binary (fields of BinaryConfig: the variant), rest (fp16 or fp32),
in_features, zero_rule and constant_rows by layer.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from bivit.deployment.kernels import row_mask
from bivit.deployment.packed_linear import PackedLinear, ZeroRule
from bivit.deployment.packed_model import packing, replace, with_packed_forms
from bivit.method.binary_linear import BinaryLinear
from bivit.models.architectures import build
from bivit.models.binarize import BinaryConfig
from bivit.models.classifier import BinaryClassifier, binary_config, is_packed
from paperkit.errors import UserError
from paperkit.files.hub import WEIGHTS
from paperkit.files.weights import check_finite, load_strict, read_metadata, read_safetensors, save_weights

FORMAT, VERSION = "bivit-packed", 1
Rest = Literal["fp16", "fp32"]
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
LARGEST_HALF = torch.finfo(torch.float16).max
SMALL, MOST_SWELLING = 1 << 24, 16
"""Numbers of a network that a file may describe anyway, and times the numbers that it holds; what is no more than that
is built, and the layer that does not fit is named."""


def write_packed(
    path: str | Path,
    network: nn.Module,
    arch: str,
    config: BinaryConfig,
    options: Mapping[str, Any] | None = None,
    rest: Rest = "fp16",
) -> None:
    """Writes a network of `pack`, whole or not at all.

    Args:
        arch, config, options: timm's name, what was binarized, timm's further sizes.
        rest: precision of everything that is not a bit.

    Raises:
        UserError: no packed network, a rest that does not exist, numbers that fp16 cannot hold, a file that cannot be
            written.
    """
    if rest not in get_args(Rest):
        raise UserError(f"rest '{rest}' does not exist; known: {', '.join(get_args(Rest))}")
    report = packing(network)
    if not report.zero_rules:
        raise UserError(f"the {type(network).__name__} has no packed layer; bivit.pack makes one that has")
    state = {}
    for key, value in network.state_dict().items():
        if value.is_floating_point() and rest == "fp16" and value.numel() and value.abs().max() > LARGEST_HALF:
            raise UserError(f"{key} reaches {float(value.abs().max()):.3g}, above what fp16 holds; take --rest fp32")
        state[key] = value.to(DTYPES[rest]) if value.is_floating_point() else value
    layers = {name: part for name, part in network.named_modules() if isinstance(part, PackedLinear)}
    content = {
        "architecture": arch,
        "binary": asdict(config),
        "constant_rows": report.constant_rows,
        "in_features": {name: layer.in_features for name, layer in layers.items()},
        "num_classes": getattr(network, "num_classes", 1000),
        "options": dict(options or {}),
        "rest": rest,
        "version": VERSION,
        "zero_rule": report.zero_rules,
    }
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in content.items()}
    save_weights(path, state, {"format": FORMAT, **metadata})


def read_packed(path: str | Path, architecture: str | None = None) -> nn.Module:
    """The packed network of a file, or of a folder with a `model.safetensors`, in eval mode.

    Args:
        architecture: refuse another one.

    Raises:
        UserError: a missing, damaged or foreign file; another format version or architecture; a layer of another
            width, with an unknown zero rule or with bits in its padding; missing or unexpected tensors.
    """
    path = Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)
    state, metadata = read_safetensors(path)
    told = _metadata(metadata, path)
    if architecture is not None and told["architecture"] != architecture:
        raise UserError(f"{path} holds a packed {told['architecture']}, not a {architecture}")
    check_finite(state, path)
    config = binary_config(told["binary"])
    try:
        with torch.random.fork_rng(devices=[]):
            network = _network(told, config, state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for name, layer in [(n, part) for n, part in network.named_modules() if isinstance(part, BinaryLinear)]:
        replace(network, name, _empty(layer, name, told, state, path))
    network = with_packed_forms(network)
    for key, wanted in network.state_dict().items():
        if key in state and wanted.is_floating_point() != state[key].is_floating_point():
            raise UserError(f"{path}: {key} is {state[key].dtype}, where {wanted.dtype} belongs")
    load_strict(network, {key: t.float() if t.is_floating_point() else t for key, t in state.items()}, str(path))
    return network


def described(folder: str | Path) -> dict[str, Any]:
    """What a folder of `save_pretrained` says of its network: arguments of `BinaryClassifier`."""
    from paperkit.files.hub import read_config

    known = ("arch", "num_classes", "binary", "options")
    return {key: value for key, value in read_config(folder).items() if key in known}


def _metadata(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} is no packed file of this project; `bivit pack` writes one")
    if metadata.get("version") != str(VERSION):
        raise UserError(f"{path} has packed format version {metadata.get('version')!s:.20}; {VERSION} is read")
    told: dict[str, Any] = {"architecture": metadata.get("architecture")}
    kinds = {"binary": dict, "in_features": dict, "zero_rule": dict, "options": dict, "num_classes": int}
    for key, kind in kinds.items():
        try:
            told[key] = json.loads(metadata[key])
        except (KeyError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: its metadata has no {key}, or no JSON there") from error
        if not isinstance(told[key], kind) or isinstance(told[key], bool):
            raise UserError(f"{path}: {key} in its metadata is no {kind.__name__}")
    if not isinstance(told["architecture"], str):
        raise UserError(f"{path}: its metadata names no architecture")
    if missing := {item.name for item in fields(BinaryConfig)} - told["binary"].keys():
        raise UserError(f"{path}: binary in its metadata lacks {', '.join(sorted(missing))}")
    return told


def simulated_twin(path: str | Path) -> nn.Module:
    """The network that a packed file was made from, without weights: for its ledger.

    Raises:
        UserError: as `read_packed`.
    """
    path = Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)
    state, metadata = read_safetensors(path)
    told = _metadata(metadata, path)
    return _network(told, binary_config(told["binary"]), state)


def holds_packed(path: Path) -> bool:
    """Whether a file, folder or run is packed."""
    if path.is_dir():
        return is_packed(path)
    return path.suffix == ".safetensors" and path.is_file() and "zero_rule" in read_metadata(path)


def _network(told: Mapping[str, Any], config: BinaryConfig, state: Mapping[str, Tensor]) -> nn.Module:
    """The network of the file's description, unless it is far larger than what the file holds.

    Raises:
        UserError: no network, or one too large.
    """
    wanted = told["architecture"], told["num_classes"], config, told["options"]
    depths = [told["options"].get(name, 0) for name in ("depth", "depths")]
    blocks = sum(n for depth in depths for n in (depth if isinstance(depth, list) else [depth]) if isinstance(n, int))
    held = sum(t.numel() * (8 if t.dtype == torch.uint8 else 1) for t in state.values())
    if blocks > len(state):
        raise UserError(f"options name {blocks} blocks, and there are {len(state)} tensors")
    with torch.device("meta"):
        claimed = sum(value.numel() for value in build(*wanted).parameters())
    if claimed > max(SMALL, MOST_SWELLING * held):
        raise UserError(f"it describes a network of {claimed} numbers, and there are {held}")
    return build(*wanted)


def _empty(
    layer: BinaryLinear, name: str, told: Mapping[str, Any], state: Mapping[str, Tensor], path: Path
) -> PackedLinear:
    """A packed layer of the file's description, checked against the network's own."""
    if (width := told["in_features"].get(name)) != layer.in_features:
        raise UserError(f"{path}: {name} has {width} inputs there and {layer.in_features} in a {told['architecture']}")
    rule = told["zero_rule"].get(name)
    if rule not in get_args(ZeroRule):
        raise UserError(
            f"{path}: zero rule {rule!s:.20} of {name} does not exist; known: {', '.join(get_args(ZeroRule))}"
        )
    if (rule == "plus") != (layer.zero == "plus"):
        raise UserError(f"{path}: {name} has zero rule '{rule}', and its network was trained with '{layer.zero}'")
    zeros = state.get(f"{name}.zero_weights")
    packed = PackedLinear(layer.in_features, layer.out_features, rule, layer.rule.inputs == "float", _entries(zeros))
    bits = state.get(f"{name}.weight_bits")
    if bits is not None and bits.dtype != torch.uint8:
        raise UserError(f"{path}: {name}.weight_bits is {bits.dtype}, not uint8")
    if (
        bits is not None
        and bits.shape == packed.weight_bits.shape
        and bool((bits & ~row_mask(layer.in_features)).any())
    ):
        raise UserError(f"{path}: {name}.weight_bits has bits set beyond its {layer.in_features} inputs")
    if zeros is not None:
        inside = torch.tensor([layer.out_features, layer.in_features])
        if zeros.ndim != 2 or zeros.shape[1] != 2 or bool((zeros < 0).any()) or bool((zeros >= inside).any()):
            raise UserError(f"{path}: {name}.zero_weights does not name weights of the layer")
    return packed


def _entries(zeros: Tensor | None) -> int:
    return 0 if zeros is None or zeros.ndim == 0 else len(zeros)


def file_sizes(network: nn.Module) -> dict[str, int]:
    """Bytes of a packed network's tensors: bits, and everything else counted at 4 and at 2 bytes."""
    bits = rest = 0
    for value in network.state_dict().values():
        if value.dtype == torch.uint8:
            bits += value.numel()
        else:
            rest += value.numel()
    return {"bits": bits, "fp32": bits + 4 * rest, "fp16": bits + 2 * rest}


def description_of(path: str | Path, **told: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A classifier and its description, from whatever `load_classifier` reads (`told`: its further arguments).

    Raises:
        UserError: as there, and for what has no binary layer or is packed already.
    """
    from bivit.models.classifier import describe
    from bivit.models.keys import load_state, to_timm
    from paperkit.files.weights import read_weights

    path = Path(path)
    folder = path / "model" if (path / "model").is_dir() else path
    if holds_packed(folder):
        raise UserError(f"{path} is packed already")
    if folder.is_dir():
        description = described(folder)
        network = BinaryClassifier.from_pretrained(folder).network
    else:
        state, _ = to_timm(read_weights(path, told.pop("trust_pickle", False)))
        description = describe(state, str(path), **told)
        network = BinaryClassifier(**description).network
        load_state(network, state, str(path))
    if not description.get("binary"):
        raise UserError(f"{path} holds a float {description['arch']}; only a binarized network can be packed")
    return network.eval(), description
