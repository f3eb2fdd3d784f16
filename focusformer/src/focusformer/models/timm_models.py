"""Sub-networks in timm's registry.

    timm.create_model("focusformer_subnet", architecture="192/3,3,4/3.5,4,4", num_classes=10)
    timm.create_model("focusformer_subnet", pretrained_cfg_overlay=dict(file="folder"))     # made by `extract`
    timm.create_model("autoformer_tiny", pretrained=True)                                   # from supernet-tiny.pth

`pretrained=True` of `autoformer_tiny`, `autoformer_small` and `autoformer_base` cuts the named architecture out of the
released supernet, which is looked for in torch hub's folder of checkpoints. Everything of ours is imported when a
network is asked for: the registry is filled while timm is being imported, perhaps by one of our own modules.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor

from focusformer.models.names import FILES, SUBNET
from paperkit.errors import UserError

if TYPE_CHECKING:
    from focusformer.models.static_vit import StaticViT

STEMS = ("patch_embed.proj.weight", "patch_embed_super.proj.weight")


def _cfg() -> dict[str, Any]:
    return dict(
        url="", num_classes=1000, input_size=(3, 224, 224), pool_size=None, crop_pct=0.875, interpolation="bicubic",
        fixed_input_size=True, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), first_conv="patch_embed.proj",
        classifier="head", license="apache-2.0",
    )  # fmt: skip


default_cfgs = generate_default_cfgs({SUBNET: _cfg(), **{f"{name}.in1k": _cfg() for name in FILES}})


def create(name: str, pretrained: bool, **kwargs: Any) -> "StaticViT":
    """Builds a sub-network, and loads it where there are weights.

    Args:
        kwargs: arguments of `StaticViT`, and timm's. `pretrained_cfg_overlay=dict(file=PATH)` loads a folder of
            `focusformer extract`, whose config gives all sizes that are not told here, or a file of a supernet.

    Raises:
        UserError: no architecture, no weights in the place where they are looked for, or weights that do not fit.
    """
    from focusformer.method.architecture import Architecture
    from focusformer.models.extraction import subnet_config
    from focusformer.models.released import is_supernet, named_architecture, released_file, told_space
    from focusformer.models.static_vit import StaticViT
    from paperkit.files.hub import WEIGHTS, read_config
    from paperkit.files.weights import read_weights

    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    told = kwargs.get("pretrained_cfg")
    source = told.get("source") if isinstance(told, dict) else getattr(told, "source", None)
    named = named_architecture(name)
    options: dict[str, Any] = {} if named is None else {"architecture": str(named)}
    if file := overlay.pop("file", None):
        path, pretrained = Path(file), True
        config = read_config(path) if path.is_dir() else {}
        if "space" in config:
            raise UserError(f"{path} is a supernet: cut an architecture out of it with focusformer extract")
        options |= config
        overlay["state_dict"] = read_weights(path / WEIGHTS if path.is_dir() else path)
    elif pretrained and not overlay.get("state_dict") and source not in ("local-dir", "hf-hub"):
        if named is None:
            raise UserError(f"{name} has no released weights; pass pretrained_cfg_overlay=dict(file=PATH)")
        overlay["state_dict"] = read_weights(released_file(name))
    options |= kwargs
    if "architecture" not in options:
        raise UserError(f"{name} needs an architecture, such as architecture='192/3,3,4/3.5,4,4'")
    base: dict[str, Any] = {"img_size": 224}
    if state := overlay.get("state_dict"):
        if is_supernet(state):
            base = subnet_config(told_space(state, "the supernet").sizes, Architecture.parse(options["architecture"]))
        size = options.get("img_size", base["img_size"])
        stem = next((value for key, value in state.items() if key.endswith(STEMS)), None)
        channels = 3 if stem is None else stem.shape[1]
        classes = len(state["head.bias"]) if "head.bias" in state else 0
        overlay |= dict(num_classes=classes, input_size=(channels, size, size))
    options = base | options
    indices = options.pop("out_indices", 3)
    return build_model_with_cfg(
        StaticViT, name, pretrained, pretrained_cfg_overlay=overlay, pretrained_filter_fn=fit,
        feature_cfg=dict(out_indices=indices, feature_cls="getter"), **options,
    )  # fmt: skip


def fit(state: Mapping[str, Tensor], model: "StaticViT") -> dict[str, Tensor]:
    """A state dict made ready for a sub-network: cut out if it is a supernet's, positions resized to the image.

    Raises:
        UserError: a supernet that does not hold this architecture.
    """
    from focusformer.models.extraction import subnet_state
    from focusformer.models.released import is_supernet, resized_positions, told_space

    chosen = model.architecture
    state = subnet_state(state, told_space(state, "the supernet").sizes, chosen) if is_supernet(state) else dict(state)
    own = model.pos_embed
    if own is not None and "pos_embed" in state and state["pos_embed"].shape[1] != own.shape[1]:
        state["pos_embed"] = resized_positions(state["pos_embed"], own.shape[1] - 1)
    return state


def _register(name: str) -> None:
    def entry(pretrained: bool = False, **kwargs: Any) -> "StaticViT":
        return create(name, pretrained, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"{name}; arguments of the network go through."
    setattr(sys.modules[__name__], name, register_model(entry))


for _name in (SUBNET, *FILES):
    _register(_name)
