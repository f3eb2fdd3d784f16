"""Any network's self-attention swapped for EcoFormer's, the weights that carry over kept.

Known are plain `qkv` attention (timm's ViT and what is built like it, Twins' windows), `q` with `kv` and a reduction
(PVTv2, Twins' global blocks) and the shared-QK softmax of this package.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.method.attention import EcoFormerAttention, name_layers
from ecoformer.method.performer import PerformerAttention
from paperkit.errors import UserError

Keep = Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class LayerChange:
    """One attention layer: its name, what it was, the weights kept and those given up, or why it stayed."""

    name: str
    was: str
    kept: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    stays: str = ""

    def __str__(self) -> str:
        if self.stays:
            return f"{self.name}: {self.was} stays ({self.stays})"
        lost = f"; gave up {', '.join(self.dropped)}" if self.dropped else ""
        return f"{self.name}: {self.was} -> EcoFormerAttention, kept {', '.join(self.kept)}{lost}"


@dataclass
class Conversion:
    """What `convert` did, layer by layer; `print` shows it."""

    layers: list[LayerChange] = field(default_factory=list)

    @property
    def changed(self) -> list[LayerChange]:
        """The layers that are EcoFormer's now."""
        return [layer for layer in self.layers if not layer.stays]

    def __str__(self) -> str:
        lines = [str(layer) for layer in self.layers]
        return "\n".join([*lines, f"{len(self.changed)} of {len(self.layers)} attention layers converted"])


def convert(
    model: nn.Module, *, keep: Keep | str | None = None, min_tokens: int = 0, inputs: Any = None, **options: Any
) -> Conversion:
    """Swaps every self-attention of a network for EcoFormer's, in place.

    Query rows become `to_qk`, value rows `to_v`; key rows, reductions and norms of keys are given up, as in the
    released conversion. The first training batch fits the hashes, or `fit_hashes(model, images)`. At least 15 epochs
    of fine-tuning follow, or a start from a shared-QK softmax network: without key rows the network must learn anew.

    Args:
        keep: what stays: a function of a layer's name and module, "last_stage" (blocks of the last stage of a
            pyramid), or None: the last stage of a pyramid, nothing of a plain ViT. "none" keeps nothing.
        min_tokens: keep the layers that see fewer tokens (`inputs` tells how many): fused softmax is quicker there, in
            this package's bench up to a few hundred.
        inputs: a batch for the network, needed by `min_tokens` alone.
        options: of `EcoFormerAttention`: `nbits`, `supports`, `bias_mode`, `backend`, `fit` ...

    Returns:
        Which layers changed, what they kept and what they gave up.

    Raises:
        UserError: no self-attention of a known kind; gates and norms inside of it, which have no place in the new one.

    Example:
        >>> report = ecoformer.convert(timm.create_model("pvt_v2_b0"))
        >>> print(report)
    """
    found = [(name, module) for name, module in model.named_modules() if _is_attention(module)]
    if not found:
        raise UserError(f"{type(model).__name__} has no self-attention of a known kind (qkv, q with kv, or to_qk)")
    if min_tokens and inputs is None:
        raise UserError("min_tokens needs inputs=, a batch that shows how many tokens each layer sees")
    tokens = _tokens(model, inputs, dict(found)) if min_tokens else {}
    stays = _keeper(keep, [name for name, _ in found])
    report = Conversion()
    for name, module in found:
        was = type(module).__name__
        if isinstance(module, EcoFormerAttention):
            report.layers.append(LayerChange(name, was, stays="is one already"))
        elif reason := _unfit(module):
            report.layers.append(LayerChange(name, was, stays=reason))
        elif stays(name, module):
            report.layers.append(LayerChange(name, was, stays="kept"))
        elif tokens.get(name, min_tokens) < min_tokens:
            report.layers.append(LayerChange(name, was, stays=f"{tokens[name]} tokens, fewer than {min_tokens}"))
        else:
            new, kept, dropped = _swapped(module, options)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, new)
            report.layers.append(LayerChange(name, was, kept, dropped))
    name_layers(model)
    return report


def _is_attention(module: nn.Module) -> bool:
    if isinstance(module, EcoFormerAttention):
        return True
    linear = {name for name, child in module.named_children() if isinstance(child, nn.Linear)}
    forms: tuple[set[str], ...] = ({"qkv", "proj"}, {"q", "kv", "proj"}, {"to_qk", "to_v", "proj"})
    return isinstance(getattr(module, "num_heads", None), int) and any(form <= linear for form in forms)


def _unfit(module: nn.Module) -> str:
    """Why a layer cannot be swapped, or an empty text."""
    linear: Any = module
    width = (linear.qkv if hasattr(module, "qkv") else linear.q if hasattr(module, "q") else linear.to_qk).in_features
    inner = linear.proj.in_features
    if inner != width or linear.proj.out_features != width:
        return f"{width} channels outside and {inner} inside"
    if getattr(module, "gate", None) is not None:
        return "it has a gate"
    if (
        getattr(module, "relative_position_bias_table", None) is not None
        or getattr(module, "rel_pos", None) is not None
    ):
        return "it has relative positions"
    return ""


def _swapped(module: nn.Module, options: dict[str, Any]) -> tuple[EcoFormerAttention, tuple[str, ...], tuple[str, ...]]:
    """(the new layer with what carries over, names of the kept weights, of the dropped)."""
    old: Any = module
    dim, state = old.proj.in_features, module.state_dict()
    bias = any(f"{name}.bias" in state for name in ("qkv", "q", "to_qk"))
    drop = old.proj_drop.p if isinstance(getattr(module, "proj_drop", None), nn.Dropout) else 0.0
    new = EcoFormerAttention(dim, old.num_heads, **{"qkv_bias": bias, "proj_drop": drop, **options})
    new = new.to(device=old.proj.weight.device, dtype=old.proj.weight.dtype).train(module.training)
    carried: dict[str, Tensor] = {k: v for k, v in state.items() if k.startswith(("proj.", "to_qk.", "to_v."))}
    kept = ["proj"]
    if "qkv.weight" in state:
        kept.append("query and value rows of qkv")
    elif "q.weight" in state:
        kept += ["q", "value rows of kv"]
    else:
        kept += ["to_qk", "to_v"]
    for kind in ("weight", "bias"):
        if f"qkv.{kind}" in state:
            carried[f"to_qk.{kind}"], carried[f"to_v.{kind}"] = state[f"qkv.{kind}"][:dim], state[f"qkv.{kind}"][-dim:]
        elif f"q.{kind}" in state:
            carried[f"to_qk.{kind}"], carried[f"to_v.{kind}"] = state[f"q.{kind}"], state[f"kv.{kind}"][dim:]
    with torch.no_grad():
        for key, value in new.named_parameters():
            if key in carried:
                value.copy_(carried[key])
            elif key.endswith(".bias"):
                value.zero_()
    dropped = [name for name in ("sr", "norm", "q_norm", "k_norm") if any(key.startswith(f"{name}.") for key in state)]
    if "qkv.weight" in state or "kv.weight" in state:
        dropped.insert(0, "key rows")
    if isinstance(module, PerformerAttention):
        dropped.append("random features")
    return new, tuple(kept), tuple(dropped)


def _keeper(keep: Keep | str | None, names: list[str]) -> Keep:
    if callable(keep):
        return keep
    if keep not in (None, "none", "last_stage"):
        raise UserError(f"keep '{keep}' is neither 'last_stage' nor 'none', and no function")
    stages = {stage for name in names if (stage := stage_of(name)) is not None}
    if keep == "none" or (keep is None and len(stages) < 2):
        return lambda name, module: False
    last = max(stages, default=None)
    return lambda name, module: stage_of(name) == last


def stage_of(name: str) -> str | None:
    """The stage in the name of a pyramid's layer (`block4`, `stages.3`, `blocks.3` of `blocks.3.0`), or None."""
    parts = name.split(".")
    if parts[0].startswith("block") and parts[0] != "blocks":
        return parts[0]
    if parts[0] in ("stages", "layers") and len(parts) > 1:
        return ".".join(parts[:2])
    pyramid = parts[0] == "blocks" and len(parts) > 3 and parts[1].isdigit() and parts[2].isdigit()
    return ".".join(parts[:2]) if pyramid else None


def _tokens(model: nn.Module, inputs: Any, layers: dict[str, nn.Module]) -> dict[str, int]:
    """How many tokens each layer sees."""
    seen: dict[str, int] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda module, args, name=name: seen.update({name: args[0].shape[-2]}))
        for name, layer in layers.items()
    ]
    training = model.training
    with torch.no_grad():
        model.eval()(inputs)
    model.train(training)
    for hook in hooks:
        hook.remove()
    return seen
