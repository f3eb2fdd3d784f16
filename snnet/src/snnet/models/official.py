"""The authors' checkpoints: their key scheme against ours, strictly and in both directions.

Ours are `anchors.{a}.<timm key>` and `stitch_layers...`. The released files have the anchors' keys in the layout of
each anchor's first home (Microsoft's Swin, Facebook's LeViT; DeiT and ResNet are timm's own), hold buffers that timm
regenerates (position indices, attention masks), and, of a ResNet trained with split BatchNorm, a second set of
statistics and weights for augmented images (`*.aux_bn.*`), which evaluation does not use.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.weights import load_strict, read_weights
from snnet.method.families.family import Family
from snnet.method.stitching import StitchedNetwork

_SPLIT_NORM = re.compile(r"\.aux_bn\.\d+\.")


@dataclass(frozen=True)
class Aside:
    """What an official file holds beyond the network.

    Attributes:
        split_norms: tensors of split BatchNorm by official key; only training used them.
        dropped: official keys of buffers that are regenerated.
    """

    split_norms: dict[str, Tensor] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


def official_names(network: StitchedNetwork) -> dict[str, str]:
    """Official key of every key of `network.state_dict()`."""
    return {name: _official_name(network, name) for name in network.state_dict()}


def official_buffers(network: StitchedNetwork) -> dict[str, Tensor]:
    """The buffers that official files hold and timm regenerates, by official key."""
    kept = network.state_dict().keys()
    return {_official_name(network, name): buffer for name, buffer in network.named_buffers() if name not in kept}


def to_official(network: StitchedNetwork, aside: Aside | None = None) -> dict[str, Tensor]:
    """The network's weights as the authors' code would save them: a bare state dict, strictly loadable there.

    Args:
        aside: what `load_official` returned for the file that the weights came from; gives back its split
            BatchNorms, and only those regenerated buffers that it had (None: all, as the authors' code saves them).
    """
    state, buffers = network.state_dict(), official_buffers(network)
    weights = {official: state[name] for name, official in official_names(network).items()}
    if aside is None:
        return weights | buffers
    return weights | {key: buffers[key] for key in aside.dropped} | aside.split_norms


def load_official(network: StitchedNetwork, state: Mapping[str, Tensor], source: str) -> Aside:
    """Load a state dict with official keys; nothing changes unless all of it fits.

    Args:
        source: where it came from, for errors.

    Raises:
        UserError: with the missing, unexpected and misshapen keys (as the file names them where they are in it), or
            with the regenerated buffer that the file holds otherwise (it was then made for another image or window
            size).
    """
    ours = {official: name for name, official in official_names(network).items()}
    buffers = official_buffers(network)
    split = {key: value for key, value in state.items() if _is_split_norm(key, ours.keys())}
    for key in buffers.keys() & state.keys():
        if state[key].shape != buffers[key].shape or not torch.equal(state[key].to(buffers[key]), buffers[key]):
            raise UserError(
                f"{source} does not fit: its {key} is not what this network has "
                f"({'x'.join(map(str, state[key].shape))} against {'x'.join(map(str, buffers[key].shape))}); "
                "it was made for another image or window size"
            )
    dropped = {*buffers, *split}
    load_strict(network, dict(state), source, lambda key: None if key in dropped else ours.get(key, key))
    return Aside(split, tuple(key for key in state if key in buffers))


def read_official(
    network: StitchedNetwork, path: str | Path, trust_pickle: bool = False, part: str | None = None
) -> Aside:
    """Load one of the released files, or a full training checkpoint of the authors' code.

    The weights may stand under `model` or `state_dict` or alone, with or without `module.`; training options in an
    argparse.Namespace are read safely.

    Args:
        trust_pickle: allow the file to build any object (a Swin checkpoint holds a yacs CfgNode), which can run code.
        part: which state dict of a file that holds several: `model_ema` beside `model`.

    Raises:
        UserError: as `load_official`; also for an unreadable file, and for one that wants more than plain values.
    """
    return load_official(network, read_weights(path, trust_pickle, part=part, part_advice="--part"), str(path))


def _is_split_norm(key: str, ours: Set[str]) -> bool:
    """Whether a key is the second set of a BatchNorm that the network has."""
    found = _SPLIT_NORM.search(key)
    return (
        found is not None
        and {f"{key[: found.start()]}.{name}" for name in ("running_mean", key[found.end() :])} <= ours
    )


def _official_name(network: StitchedNetwork, name: str) -> str:
    """Official key of a parameter or buffer of the network; stitching layers have the same name in both."""
    top, _, rest = name.partition(".")
    if top != "anchors":
        return name
    index, _, key = rest.partition(".")
    anchor, family = network.anchors[int(index)], network.families[int(index)]
    return f"anchors.{index}.{_ANCHOR_NAMES.get(family.name, _same)(anchor, family, key)}"


def _same(anchor: nn.Module, family: Family, key: str) -> str:
    return key


def _swin(anchor: nn.Module, family: Family, key: str) -> str:
    """Microsoft merges patches at the end of a stage, timm at the start of the next."""
    if key.startswith("head.fc."):
        return key.replace("head.fc.", "head.")
    return re.sub(r"^layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) - 1}.downsample.", key)


def _levit(anchor: nn.Module, family: Family, key: str) -> str:
    """Facebook's LeViT is one flat list: per block its attention and its MLP, then the downsampling's two."""
    depths = family.depths(anchor)
    starts = [sum(2 * depth + 2 for depth in depths[:stage]) for stage in range(len(depths))]
    for pattern, place in _levit_places(starts, depths):
        if found := re.match(pattern, key):
            key = place(found) + key[found.end() :]
            break
    key = key.replace(".proj.ln.", ".proj.1.").replace(".q.ln.", ".q.1.")
    if key.startswith("head"):
        return key.replace(".linear.", ".l.")
    return key.replace(".linear.", ".c.")


def _levit_places(starts: list[int], depths: tuple[int, ...]) -> Iterator[tuple[str, Callable[[re.Match[str]], str]]]:
    """(pattern at the start of a timm key, the official beginning that replaces it)."""

    def block(found: re.Match[str], extra: int = 0) -> str:
        return f"blocks.{starts[int(found[1])] + 2 * int(found[2]) + extra}."

    def downsample(found: re.Match[str], extra: int = 0) -> str:
        before = int(found[1]) - 1
        return f"blocks.{starts[before] + 2 * depths[before] + extra}."

    def layer(found: re.Match[str]) -> str:
        return "m.0." if found["layer"] == "ln1" else "m.2."

    yield r"stem\.conv(\d+)\.", lambda found: f"patch_embed.{2 * (int(found[1]) - 1)}."
    yield r"stages\.(\d+)\.blocks\.(\d+)\.attn\.", lambda found: block(found) + "m."
    yield r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.(?P<layer>ln\d)\.", lambda found: block(found, 1) + layer(found)
    yield r"stages\.(\d+)\.downsample\.attn_downsample\.", downsample
    yield r"stages\.(\d+)\.downsample\.mlp\.(?P<layer>ln\d)\.", lambda found: downsample(found, 1) + layer(found)


_ANCHOR_NAMES: dict[str, Callable[[nn.Module, Family, str], str]] = {"Swin": _swin, "LeViT": _levit}
