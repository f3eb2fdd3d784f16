"""timm's networks that the paper binarizes, by timm's names, and how one is built from plain values."""

import functools
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from bivit.models.binarize import BinaryConfig, binarize
from bivit.models.names import ARCHITECTURES
from paperkit.errors import UserError

NOT_OPTIONS = {
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable",
    "exportable", "no_jit", "num_classes", "features_only",
}  # fmt: skip
"""Arguments of `timm.create_model` that read files, or that this package sets itself."""


def check_architecture(arch: str) -> None:
    """Refuses what is not one of timm's own names: others make timm read from disk or the network.

    Raises:
        UserError: with the names that the paper uses.
    """
    name, _, tag = str(arch).partition(".")
    if tag or not timm.is_model(name):
        raise UserError(f"timm has no network '{arch!s:.100}'; the paper's are {', '.join(ARCHITECTURES)}")


def build_float(arch: str, num_classes: int, options: Mapping[str, Any] | None = None) -> nn.Module:
    """A network of timm's without weights.

    Args:
        options: further arguments of its constructor, plain values (img_size, depth, drop_path_rate, ...).

    Raises:
        UserError: an unknown name, or options that do not describe it.
    """
    check_architecture(arch)
    options = dict(options or {})
    if refused := sorted(NOT_OPTIONS & options.keys()):
        raise UserError(f"options of {arch}: {', '.join(refused)} is no size of a network")
    if (channels := options.get("in_chans", 3)) != 3:
        raise UserError(f"options of {arch}: in_chans {channels}, but the images are read with 3 channels")
    drop = {"drop_path_rate": 0.0, **options}  # timm's own default is 0.1 for Swin and 0.5 for NesT
    try:
        return timm.create_model(arch, num_classes=num_classes, **drop)
    except (TypeError, ValueError, AssertionError, LookupError, ArithmeticError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"options do not describe a {arch}: {reason}") from error


def is_binary(config: BinaryConfig) -> bool:
    """Whether anything becomes binary by a config."""
    return config.attention != "float" or config.mlp != "float"


def build(
    arch: str, num_classes: int, config: BinaryConfig | None = None, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """The same, binarized; without a config it stays float.

    Raises:
        UserError: also for a network, or rules, that cannot be binary.
    """
    model = build_float(arch, num_classes, options)
    if config is not None and is_binary(config):
        binarize(model, config)
    return model


@functools.cache
def _shapes(arch: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: value.shape for key, value in build_float(arch, 1000).state_dict().items()}


def is_head(key: str) -> bool:
    """Whether a key is of the classifier, whose size depends on the data."""
    return key.startswith(("head.", "head_dist."))


def told_architecture(state: Mapping[str, Tensor], source: str) -> str:
    """The published network that weights, in timm's keys, are of, by their names and shapes.

    Raises:
        UserError: none fits.
    """
    for arch in ARCHITECTURES:
        wanted = {key: shape for key, shape in _shapes(arch).items() if not is_head(key)}
        if all(key in state and state[key].shape == shape for key, shape in wanted.items()):
            return arch
    raise UserError(
        f"{source} holds weights of none of {', '.join(ARCHITECTURES)}; name the network with --arch, and its sizes "
        "with --options"
    )
