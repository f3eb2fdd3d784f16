"""Reference files of Swin, LeViT and ResNet, and of the five released SN-Nets, computed again."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.models.levit import LevitDistilled
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from paperkit.errors import UserError
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import check_options
from snnet.method.counting import configuration_macs, reported_parameters
from snnet.method.families.resnet import narrow_resnet
from snnet.method.stitching import StitchedNetwork
from snnet.models.official import to_official
from snnet.models.released_networks import RELEASED, ReleasedStitch, build_on_meta, released_stitches
from snnet.verification.plain import (
    as_released,
    configuration_results,
    load_network,
    stitched_results,
)

_BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


def _swin_anchor(anchor: Mapping[str, Any], config: Mapping[str, Any]) -> SwinTransformer:
    """One Swin; what its own entry lacks stands beside the list of anchors."""
    options = {"mlp_ratio": 4, "norm_eps": 1e-5, **config, **anchor}
    for name in ("patch_size", "window_size"):
        if name not in options:
            raise UserError(f"missing option {name}")
    return SwinTransformer(
        img_size=config["img_size"],
        patch_size=options["patch_size"],
        window_size=options["window_size"],
        num_classes=config["num_classes"],
        embed_dim=anchor["dim"],
        depths=tuple(anchor["depths"]),
        num_heads=tuple(anchor["heads"]),
        mlp_ratio=options["mlp_ratio"],
        drop_path_rate=0.0,
        norm_layer=partial(nn.LayerNorm, eps=options["norm_eps"]),  # type: ignore[arg-type]
    )


def _levit_anchor(anchor: Mapping[str, Any], config: Mapping[str, Any]) -> LevitDistilled:
    for name, only in (("down_attn_ratio", 4), ("down_mlp_ratio", 2)):
        if config.get(name, only) != only:
            raise UserError(f"{name} {config[name]} is not what timm's LeViT has; it is always {only}")
    return LevitDistilled(
        img_size=config["img_size"],
        num_classes=config["num_classes"],
        embed_dim=tuple(anchor["C"]),
        key_dim=anchor["D"],
        num_heads=tuple(anchor["N"]),
        depth=tuple(config["depth"]),
        attn_ratio=tuple(config["attn_ratio"]),
        mlp_ratio=tuple(config["mlp_ratio"]),
    )


def _convolutional_anchor(anchor: Mapping[str, Any], config: Mapping[str, Any]) -> nn.Module:
    if anchor.get("swin"):
        return _swin_anchor(anchor, config)
    if anchor["block"] not in _BLOCKS:
        raise UserError(f"unknown block {anchor['block']!r}; known: {', '.join(_BLOCKS)}")
    return narrow_resnet(
        _BLOCKS[anchor["block"]],
        tuple(anchor["layers"]),
        tuple(config["channels"]),
        config["stem_channels"],
        config["num_classes"],
        anchor.get("base_width", 64),
    )


def _network(file: ReferenceFile, anchors: Sequence[nn.Module]) -> dict[str, Any]:
    # Sizes of reference files are free, so the order of their anchors is not checked.
    network = load_network(StitchedNetwork(anchors, any_order=True), file.state)
    results = configuration_results(network)
    if (reported := reported_parameters(network)) is not None:
        results["out.params_reported"] = torch.tensor(reported)
    return results | stitched_results(network, file)


def swin(file: ReferenceFile) -> dict[str, Any]:
    """A stitched Swin."""
    return _network(file, [_swin_anchor(anchor, file.config) for anchor in _anchors(file, _SWIN_ANCHOR)])


def levit(file: ReferenceFile) -> dict[str, Any]:
    """A stitched LeViT."""
    return _network(file, [_levit_anchor(anchor, file.config) for anchor in _anchors(file, {"C", "D", "N"})])


def convolutional(file: ReferenceFile) -> dict[str, Any]:
    """ResNets, the last anchor a Swin if the file's `cnn_to_vit` says so."""
    entries = _anchors(file, {"block", "layers", "base_width", "swin", *_SWIN_ANCHOR})
    mixed = any(entry.get("swin", False) for entry in entries)
    if file.config.get("cnn_to_vit", mixed) != mixed or mixed != (file.kind == "resnet_swin"):
        raise UserError(f"cnn_to_vit and the anchors of a {file.kind} file do not agree")
    return _network(file, [_convolutional_anchor(anchor, file.config) for anchor in entries])


_SWIN_ANCHOR = {"dim", "depths", "heads", "window_size", "patch_size", "norm_eps", "mlp_ratio"}


def _anchors(file: ReferenceFile, allowed: set[str]) -> list[dict[str, Any]]:
    """The file's anchors, each with known options only."""
    entries = file.config["anchors"]
    for i, entry in enumerate(entries):
        check_options(entry, allowed, f"anchors[{i}]")
    return entries


def released_configurations(file: ReferenceFile) -> dict[str, Any]:
    """Cuts, layers, multiply-adds and parameters recomputed at full size; accuracies are the shipped facts."""
    results: dict[str, Any] = {}
    for name, content in file.config.items():
        check_options(content, {"configs"}, name)
        network = build_on_meta(name)
        macs = configuration_macs(network, (3, 224, 224))
        reported = reported_parameters(network)
        entries, table = [], []
        for i, (configuration, facts) in enumerate(zip(network.configurations, released_stitches(name), strict=True)):
            entry = as_released(configuration) | {"cfg_id": i, "flops": macs[i]}
            if reported is not None:
                entry["params"] = reported[i]
            entries.append(entry | measured(facts))
            stage = -1 if configuration.stage is None else configuration.stage
            cut, layer = (configuration.cuts or ((-1, -1),))[0], (configuration.layers or (-1,))[0]
            table.append([stage, configuration.anchors[0], configuration.anchors[-1], *cut, layer])
        results |= {
            f"config.{name}.configs": entries,
            f"out.{name}.table": torch.tensor(table),
            f"out.{name}.flops": torch.tensor(macs),
            f"out.{name}.acc1": torch.tensor([facts.acc1 for facts in released_stitches(name)], dtype=torch.float64),
        }
        if reported is not None:
            results[f"out.{name}.params"] = torch.tensor(reported)
    return results


def measured(facts: ReleasedStitch) -> dict[str, float]:
    """Of a released figure, what only a measurement gives."""
    values = {"acc1": facts.acc1, "acc5": facts.acc5, "loss": facts.loss}
    return {key: value for key, value in values.items() if value is not None}


def released_keys(file: ReferenceFile) -> dict[str, Any]:
    """Keys and shapes of each released checkpoint."""
    results: dict[str, Any] = {}
    for net in file.config:
        state = to_official(build_on_meta(KEY_LISTS[net]))
        results[f"config.{net}"] = {key: list(tensor.shape) for key, tensor in state.items()}
        results[f"out.{net}.num_keys"] = torch.tensor(len(state))
    return results


KEY_LISTS = {released.file.removesuffix(".pth").removesuffix("_release"): name for name, released in RELEASED.items()}
