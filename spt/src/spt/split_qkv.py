"""timm's fused ``qkv`` Linear as three Linears and back (specification: the paper selects on separate q, k and v).

``SplitQKV`` takes the place of ``attn.qkv`` and returns the same concatenation, so that every attention of timm that
calls ``self.qkv(x)`` (ViT, Swin and their kin) works unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .candidates import QKV, is_fused_qkv
from .tuned_linear import TunedLinear


class SplitQKV(nn.Module):
    """q, k and v as three Linears; (B, N, C) -> (B, N, 3C) in the order of the fused layer."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        rows = fused.out_features // 3
        for index, part in enumerate(QKV):
            linear = nn.Linear(fused.in_features, rows, fused.bias is not None, device="meta")
            linear.weight = nn.Parameter(fused.weight.detach()[index * rows : (index + 1) * rows].clone())
            if fused.bias is not None:
                linear.bias = nn.Parameter(fused.bias.detach()[index * rows : (index + 1) * rows].clone())
            self.add_module(part, linear)
        self.shared_drop = nn.Dropout(0.0)  # one draw for the modules of q, k and v (section 5 of the specification)

    @property
    def parts(self) -> list[nn.Linear | TunedLinear]:
        """The three layers in order."""
        return [self.get_submodule(part) for part in QKV]  # type: ignore[misc]

    @property
    def weight(self) -> Tensor:
        """The fused weight without any tuning; some models of timm read its device or type."""
        return torch.cat([part.weight for part in self.parts])

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, 3C)."""
        shares = any(
            isinstance(p, TunedLinear) and p.structured is not None and p.position == "parallel" for p in self.parts
        )
        dropped = self.shared_drop(x) if shares else x
        return torch.cat([p(x, dropped) if isinstance(p, TunedLinear) else p(x) for p in self.parts], dim=-1)

    @torch.no_grad()
    def fused(self) -> nn.Linear:
        """One Linear that computes the same in evaluation; sparse entries and linear modules folded in."""
        weights, biases = [], []
        for part in self.parts:
            weights.append(part.merged_weight() if isinstance(part, TunedLinear) else part.weight.detach())
            bias = part.merged_bias() if isinstance(part, TunedLinear) else part.bias
            if bias is not None:
                biases.append(bias.detach())
        weight = torch.cat(weights)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bool(biases), device="meta")
        linear.weight = nn.Parameter(weight)
        if biases:
            linear.bias = nn.Parameter(torch.cat(biases))
        return linear


def split_qkv_layers(model: nn.Module) -> nn.Module:
    """Replaces every fused qkv of ``model`` in place; already split layers stay. Returns the model."""
    for name, module in list(model.named_modules()):
        if is_fused_qkv(name, module):
            model.set_submodule(name, SplitQKV(module))
    return model


def split_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a fused model -> keys of the separate model; thirds in the order q, k, v."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        stem, _, leaf = name.rpartition(".")
        if stem.endswith("qkv"):
            for part, piece in zip(QKV, value.chunk(3), strict=True):
                out[f"{stem.removesuffix('qkv')}{part}.{leaf}"] = piece
        else:
            out[name] = value
    return out


def fuse_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`split_state`: q, k and v of one layer concatenated under ``qkv``.

    Raises:
        ValueError: if a layer has a query but lacks its key or value.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        stem, _, leaf = name.rpartition(".")
        owner, _, part = stem.rpartition(".")
        if part not in QKV or not owner.endswith("attn"):
            out[name] = value
        elif part == "q":
            names = [f"{owner}.{each}.{leaf}" for each in QKV]
            missing = [each for each in names if each not in state]
            if missing:
                raise ValueError(f"{name} has no {', '.join(missing)} beside it")
            out[f"{owner}.qkv.{leaf}"] = torch.cat([state[each] for each in names])
        elif f"{owner}.q.{leaf}" not in state:
            raise ValueError(f"{name} has no {owner}.q.{leaf} beside it")
    return out
