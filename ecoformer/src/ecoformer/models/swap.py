"""Any network's self-attention swapped for EcoFormer's, the weights that carry over kept.

Known are plain `qkv` attention (timm's ViT and what is built like it, Twins' windows), `q` with `kv` and a reduction
(PVTv2, Twins' global blocks), `q_proj`, `k_proj`, `v_proj` (EVA) and the shared-QK softmax of this package.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.method.attention import EcoFormerAttention, name_layers
from ecoformer.method.energy import NOT_OVER_TOKENS
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

    Query rows become `to_qk`, value rows `to_v`; key rows, reductions, norms and rotary positions are given up. A layer
    with weights of another kind (relative positions, gates, temperatures) stays. The first training batch fits the
    hashes, or `fit_hashes(model, images)`. At least 15 epochs of fine-tuning follow, or a start from a shared-QK
    softmax network: without key rows the network must learn anew.

    Args:
        keep: what stays: a function of a layer's name and module, "last_stage" (blocks of the last stage of a
            pyramid), or None: the last stage of a pyramid, nothing of a plain ViT. "none" keeps nothing.
        min_tokens: keep the layers that see fewer tokens (`inputs` tells how many): fused softmax is quicker there, in
            this package's bench up to a few hundred.
        inputs: a batch for the network, needed by `min_tokens` alone.
        options: of `EcoFormerAttention`: `nbits`, `supports`, `bias_mode`, `backend`, `fit` ("adam", `FitOptions`) ...

    Returns:
        Which layers changed, what they kept and what they gave up.

    Raises:
        UserError: no self-attention of a known kind, or none that can be swapped; with the first one's reason.

    Example:
        >>> report = ecoformer.convert(timm.create_model("pvt_v2_b0"))
        >>> print(report)
    """
    found = [(name, module) for name, module in model.named_modules() if _is_attention(module)]
    if not found:
        raise UserError(
            f"{type(model).__name__} has no self-attention of a known kind (qkv, q with kv, q_proj, or to_qk)"
        )
    if min_tokens and inputs is None:
        raise UserError("min_tokens needs inputs=, a batch that shows how many tokens each layer sees")
    tokens = _tokens(model, inputs, dict(found)) if min_tokens else {}
    stays = _keeper(keep, [name for name, _ in found])
    rotary = any(name.rpartition(".")[2] == "rope" for name, _ in model.named_modules())
    unfit = {name: _unfit(module) for name, module in found if not isinstance(module, EcoFormerAttention)}
    if unfit and all(unfit.values()):
        name, why = next(iter(unfit.items()))
        raise UserError(
            f"none of the {len(unfit)} attention layers of this {type(model).__name__} can be converted; {name}, "
            f"{type(model.get_submodule(name)).__name__}: {why}"
        )
    report = Conversion()
    for name, module in found:
        was = type(module).__name__
        if isinstance(module, EcoFormerAttention):
            report.layers.append(LayerChange(name, was, stays="is one already"))
        elif unfit[name]:
            report.layers.append(LayerChange(name, was, stays=unfit[name]))
        elif stays(name, module):
            report.layers.append(LayerChange(name, was, stays="kept"))
        elif tokens.get(name, min_tokens) < min_tokens:
            report.layers.append(LayerChange(name, was, stays=f"{tokens[name]} tokens, fewer than {min_tokens}"))
        else:
            new, kept, dropped = _swapped(module, options, rotary)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, new)
            report.layers.append(LayerChange(name, was, kept, dropped))
    name_layers(model)
    return report


_FORMS = ({"qkv", "proj"}, {"q", "kv", "proj"}, {"q_proj", "k_proj", "v_proj", "proj"}, {"to_qk", "to_v", "proj"})
"""Linear layers that a self-attention is known by."""
_CALLED = {"q_proj": "q", "to_qk": "q", "v_proj": "v", "to_v": "v"}
_GIVEN_UP = ("sr", "norm", "q_norm", "k_norm")
_PLACED = {name for form in _FORMS for name in form} | {"q_bias", "v_bias", "fast_attention", *_GIVEN_UP}
"""Weights of an attention layer whose fate in a conversion is clear: kept, or given up and said so."""


def _is_attention(module: nn.Module) -> bool:
    if isinstance(module, EcoFormerAttention):
        return True
    linear = {name for name, child in module.named_children() if isinstance(child, nn.Linear)}
    return isinstance(getattr(module, "num_heads", None), int) and any(form <= linear for form in _FORMS)


def _projections(module: nn.Module) -> dict[str, Tensor]:
    """Weights and biases under `q.`, `v.` and `proj.`, whatever the layer calls them."""
    state, found = module.state_dict(), {}
    for kind in ("weight", "bias"):
        for key, value in state.items():
            name, _, last = key.partition(".")
            if last != kind:
                continue
            if name == "qkv":
                width = value.shape[0] // 3
                found[f"q.{kind}"], found[f"v.{kind}"] = value[:width], value[-width:]
            elif name == "kv":
                found[f"v.{kind}"] = value[value.shape[0] // 2 :]
            elif name in ("q", "q_proj", "to_qk", "v_proj", "to_v", "proj"):
                found[f"{_CALLED.get(name, name)}.{kind}"] = value
    for name in ("q", "v"):
        if f"{name}_bias" in state:
            found[f"{name}.bias"] = state[f"{name}_bias"]
    return found


def _unfit(module: nn.Module) -> str:
    """Why a layer cannot be swapped, or an empty text."""
    if why := NOT_OVER_TOKENS.get(type(module).__name__):
        return why
    held = {key.partition(".")[0] for key in module.state_dict()}
    if others := sorted(held - _PLACED):
        return f"it has {', '.join(others)}, without a place in the new layer"
    weights = _projections(module)
    outer, inner = weights["q.weight"].shape[1], weights["proj.weight"].shape[1]
    shapes = {tuple(weights[f"{name}.weight"].shape) for name in ("q", "v", "proj")}
    return "" if shapes == {(outer, outer)} else f"{outer} channels outside and {inner} inside"


def _swapped(
    module: nn.Module, options: dict[str, Any], rotary: bool
) -> tuple[EcoFormerAttention, tuple[str, ...], tuple[str, ...]]:
    """(the new layer with what carries over, names of the kept weights, of the dropped)."""
    old: Any = module
    weights, held = _projections(module), {key.partition(".")[0] for key in module.state_dict()}
    bias = "q.bias" in weights or "v.bias" in weights
    drop = old.proj_drop.p if isinstance(getattr(module, "proj_drop", None), nn.Dropout) else 0.0
    new = EcoFormerAttention(old.proj.in_features, old.num_heads, **{"qkv_bias": bias, "proj_drop": drop, **options})
    new = new.to(device=old.proj.weight.device, dtype=old.proj.weight.dtype).train(module.training)
    with torch.no_grad():
        for ours, theirs in (("to_qk", "q"), ("to_v", "v"), ("proj", "proj")):
            for kind, value in getattr(new, ours).named_parameters():
                if f"{theirs}.{kind}" in weights:
                    value.copy_(weights[f"{theirs}.{kind}"])
                elif kind == "bias":
                    value.zero_()
    sources = {"qkv": "query and value rows of qkv", "q": "q", "kv": "value rows of kv", "q_bias": "q_bias"}
    named = ("q_proj", "v_proj", "to_qk", "to_v", "v_bias")
    kept = ["proj", *(text for name, text in sources.items() if name in held), *(n for n in named if n in held)]
    dropped = [name for name in _GIVEN_UP if name in held]
    if held & {"qkv", "kv", "k_proj"}:
        dropped.insert(0, "key rows")
    if isinstance(module, PerformerAttention):
        dropped.append("random features")
    if rotary and "rope" in inspect.signature(module.forward).parameters:
        dropped.append("rotary positions")
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
