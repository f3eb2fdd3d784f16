"""A sub-network cut out of a supernet: contiguous weights, qkv de-interleaved, rescalings folded in.

Released inconsistencies end here: the slice of a qkv bias is taken once, the factors of
`scale` go into the weights behind them, and the softmax scale of `change_qkv=False` into the query rows. What is left
is a plain network with equal logits (to 1e-5).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from focusformer.method.architecture import Architecture, SuperSizes
from focusformer.method.elastic import deinterleave
from focusformer.method.supernet import Supernet
from focusformer.models.static_vit import StaticViT
from paperkit.files.keys import load_strict


def extract_subnet(supernet: Supernet, architecture: Architecture) -> StaticViT:
    """The sub-network as a model of its own, in eval mode; its weights are copies.

    Raises:
        UserError: an architecture above the super sizes.
    """
    return subnet_from(supernet.state_dict(), supernet.sizes, architecture)


def subnet_from(state: Mapping[str, Tensor], sizes: SuperSizes, architecture: Architecture) -> StaticViT:
    """`extract_subnet` from a supernet's state dict.

    Raises:
        UserError: as there.
    """
    weights = subnet_state(state, sizes, architecture)
    with torch.random.fork_rng(devices=[]):  # what the constructor draws is replaced at once
        model = StaticViT(**subnet_config(sizes, architecture))
    load_strict(model, weights, "the supernet")
    return model.to(next(iter(weights.values())).device).eval()


def subnet_config(sizes: SuperSizes, architecture: Architecture) -> dict[str, Any]:
    """Arguments of `StaticViT`.

    Raises:
        UserError: an architecture above the super sizes.
    """
    sizes.check(architecture)
    widths = [sizes.q(heads) // heads for heads in architecture.heads]
    return dict(
        architecture=str(architecture), img_size=sizes.img_size, patch_size=sizes.patch_size, in_chans=sizes.in_chans,
        num_classes=sizes.num_classes, head_dim=widths[0] if len(set(widths)) == 1 else widths,
        max_relative_position=sizes.max_relative_position if sizes.relative_position else 0, abs_pos=sizes.abs_pos,
        qkv_bias=sizes.qkv_bias, pre_norm=sizes.pre_norm, global_pool="avg" if sizes.gp else "token",
    )  # fmt: skip


def subnet_state(state: Mapping[str, Tensor], sizes: SuperSizes, architecture: Architecture) -> dict[str, Tensor]:
    """State dict of `StaticViT` from that of a supernet, under the official keys.

    Raises:
        UserError: an architecture above the super sizes.
    """
    sizes.check(architecture)
    e = architecture.embed
    out = {"cls_token": state["cls_token"][..., :e]}
    if sizes.abs_pos:
        out["pos_embed"] = state["pos_embed"][..., :e]
    for kind in ("weight", "bias"):
        out[f"patch_embed.proj.{kind}"] = state[f"patch_embed_super.proj.{kind}"][:e]
        if sizes.pre_norm:
            out[f"norm.{kind}"] = state[f"norm.{kind}"][:e]
    out["head.weight"], out["head.bias"] = state["head.weight"][:, :e], state["head.bias"]
    for i in range(architecture.depth):
        out |= {f"blocks.{i}.{key}": value for key, value in _layer(state, sizes, architecture, i).items()}
    return {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in out.items()}


def _layer(state: Mapping[str, Tensor], sizes: SuperSizes, architecture: Architecture, i: int) -> dict[str, Tensor]:
    """Weights of one block."""
    e, heads, hidden = architecture.embed, architecture.heads[i], architecture.hidden[i]
    q, stem = sizes.q(heads), f"blocks.{i}"
    width = q // heads
    weight, bias = _qkv(state, sizes, f"{stem}.attn.qkv", e, q)
    if not sizes.change_qkv:  # the released softmax scale is (e // h)^-0.5, whatever the width of a head
        factor = (width / (e // heads)) ** 0.5
        weight, bias = (
            _first_rows_times(weight, q, factor),
            None if bias is None else _first_rows_times(bias, q, factor),
        )
    attention = sizes.embed / q if sizes.scale else 1.0
    mlp = sizes.ratio / architecture.ratios[i] if sizes.scale else 1.0
    out = {
        "attn.qkv.weight": weight,
        "attn.proj.weight": state[f"{stem}.attn.proj.weight"][:e, :q] * attention,
        "attn.proj.bias": state[f"{stem}.attn.proj.bias"][:e],
        "mlp.fc1.weight": state[f"{stem}.fc1.weight"][:hidden, :e],
        "mlp.fc1.bias": state[f"{stem}.fc1.bias"][:hidden],
        "mlp.fc2.weight": state[f"{stem}.fc2.weight"][:e, :hidden] * mlp,
        "mlp.fc2.bias": state[f"{stem}.fc2.bias"][:e] * mlp,
    }
    if bias is not None:
        out["attn.qkv.bias"] = bias
    for ours, theirs in (("norm1", "attn_layer_norm"), ("norm2", "ffn_layer_norm")):
        out |= {f"{ours}.{kind}": state[f"{stem}.{theirs}.{kind}"][:e] for kind in ("weight", "bias")}
    if sizes.relative_position:
        for key in (f"attn.rel_pos_embed_{to}.embeddings_table_{along}" for to in "kv" for along in "vh"):
            out[key] = state[f"{stem}.{key}"][:, :width]
    return out


def _qkv(state: Mapping[str, Tensor], sizes: SuperSizes, stem: str, e: int, q: int) -> tuple[Tensor, Tensor | None]:
    """Rows of all queries, all keys, all values, and their biases."""

    weight, bias = state[f"{stem}.weight"][:, :e], state.get(f"{stem}.bias")
    if not sizes.change_qkv:
        return weight, bias
    if bias is not None:
        bias = deinterleave(bias[: 3 * q]) if sizes.qkv_bias_layout == "interleaved" else bias[: 3 * q]
    return deinterleave(weight[: 3 * q]), bias


def _first_rows_times(rows: Tensor, count: int, factor: float) -> Tensor:
    return torch.cat([rows[:count] * factor, rows[count:]])
