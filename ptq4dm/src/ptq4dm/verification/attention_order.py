"""Attention in the order in which the authors' networks compute it.

The attention of diffusers is fused and differs from theirs in the last bits of float32. Before a quantiser that is
enough to move one of some ten thousand values to the next step, and what follows from it grows from layer to layer.
"""

import math
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


class AuthorsOrder:
    """A processor for `Attention`: as their `AttentionBlock` for images, as their `CrossAttention` for tokens."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """(B, C, H, W) or (B, T, C) -> the same shape. Nothing is masked, and `temb` stands for no more than in theirs:
        nothing."""
        if hidden_states.dim() == 4:
            return _block(attn, hidden_states)
        return _cross(attn, hidden_states, hidden_states if encoder_hidden_states is None else encoder_hidden_states)


def _project(attn: Attention, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return attn.to_q(x), cast(nn.Module, attn.to_k)(context), cast(nn.Module, attn.to_v)(context)


def _out(attn: Attention) -> nn.Module:
    return cast(nn.ModuleList, attn.to_out)[0]


def _block(attn: Attention, x: Tensor) -> Tensor:
    """Queries and keys are scaled, each by the root; channels come before positions."""
    normed = cast(nn.Module, attn.group_norm)(x.flatten(2)).mT
    q, k, v = (part.mT.reshape(len(x) * attn.heads, -1, part.shape[1]) for part in _project(attn, normed, normed))
    root = 1 / math.sqrt(math.sqrt(q.shape[1]))
    weights = torch.einsum("bct,bcs->bts", q * root, k * root).softmax(-1)
    mixed = torch.einsum("bts,bcs->bct", weights, v).reshape(len(x), -1, v.shape[2])
    return x + _out(attn)(mixed.mT).mT.reshape(x.shape)


def _cross(attn: Attention, x: Tensor, context: Tensor) -> Tensor:
    """The product of queries and keys is scaled."""
    q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in _project(attn, x, context))
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    return cast(Tensor, _out(attn)((weights @ v).transpose(1, 2).flatten(2)))


def use_authors_order(network: nn.Module) -> None:
    """Sets the processor of every `Attention` of the network."""
    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(cast(Any, AuthorsOrder()))
