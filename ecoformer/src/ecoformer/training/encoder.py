"""A small encoder for sequences, as the Long Range Arena's, whose attention is one of five.

Embedding, fixed sinusoidal positions, pre-norm blocks, then a classifier on the first (CLS) or the mean token. Padding
(token 0) takes part in nothing: no key, no sigma, no label of the fit, no mean.

Shapes: B batch, N tokens, D width of the tokens, E width of queries, keys and values, H heads, K classes.
"""

import math
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ecoformer.method.attention import EcoFormerAttention, name_layers
from ecoformer.method.hash_fit import FitOptions
from ecoformer.method.performer import PerformerAttention
from ecoformer.method.shared_qk import SharedQKAttention
from ecoformer.method.softmax_attention import MSA, join_heads, split_heads
from paperkit.errors import UserError
from paperkit.files.hub import SavedInFolder

Arm = Literal["transformer", "shared_qk", "performer", "elu", "ecoformer"]
CARD = """---
{{ card_data }}
---

# EcoFormer on sequences

A classifier of token sequences whose attention works on learned binary codes, or one of its baselines (arXiv
2209.09004). Load it with `ecoformer.training.encoder.Encoder.from_pretrained(FOLDER)`; what it was trained on, and how
well it does, stands in its run's `metrics.json`.
"""


class EluAttention(MSA):
    """Linear attention with phi(x) = elu(x) + 1 (Katharopoulos et al., ICML 2020), a baseline. Keys: qkv, proj."""

    def forward(self, x: Tensor, size: Any = None, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        if causal:
            raise UserError("this baseline has no causal form")
        q, k, v = (split_heads(t, self.num_heads) for t in self.qkv(x).chunk(3, -1))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        k = k if mask is None else k * mask[:, None, :, None]
        out = q @ (k.mT @ v) / (q @ k.sum(-2)[..., None]).clamp_min(1e-6)
        return self.proj_drop(self.proj(join_heads(out)))


def sequence_attention(arm: Arm, dim: int, heads: int, inner: int, hash_: dict[str, Any]) -> nn.Module:
    """An attention layer on tokens of width D whose queries, keys and values are E wide; no biases, as in the arena.

    Raises:
        UserError: heads that do not divide E, or an arm that is unknown.
    """
    if arm == "ecoformer":
        options = {**hash_, "fit": FitOptions(**hash_["fit"])} if "fit" in hash_ else hash_
        layer: Any = EcoFormerAttention(inner, heads, qkv_bias=False, **options)
    else:
        kinds = {
            "transformer": MSA,
            "shared_qk": SharedQKAttention,
            "performer": PerformerAttention,
            "elu": EluAttention,
        }
        if arm not in kinds:
            raise UserError(f"network.attention '{arm}' is none of {', '.join([*kinds, 'ecoformer'])}")
        layer = kinds[arm](inner, heads, qkv_bias=False)
    if inner != dim:
        for name, width in (("qkv", 3 * inner), ("to_qk", inner), ("to_v", inner)):
            if hasattr(layer, name):
                setattr(layer, name, nn.Linear(dim, width, bias=False))
    layer.proj = nn.Linear(inner, dim, bias=False)
    return layer


class SequenceBlock(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)). Keys: norm1, attn, norm2, fc1, fc2."""

    def __init__(self, dim: int, attn: nn.Module, mlp: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim, eps=1e-6), attn, nn.LayerNorm(dim, eps=1e-6)
        self.fc1, self.fc2, self.drop = nn.Linear(dim, mlp), nn.Linear(mlp, dim), nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, N, D), (B, N) -> (B, N, D)."""
        x = x + self.drop(self.attn(self.norm1(x), mask=mask))
        hidden = self.drop(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))  # flax's gelu
        return x + self.drop(self.fc2(hidden))


class Encoder(nn.Module, SavedInFolder, library_name="ecoformer", license="apache-2.0", model_card_template=CARD):
    """Tokens to logits.

    Args:
        vocabulary: symbols, padding (0) among them. classes: K. max_length: N at most.
        attention: transformer, shared_qk, performer, elu or ecoformer.
        layers, heads, dim, inner, mlp: of the encoder; `dim` is D, `inner` E.
        dropout: everywhere but on attention.
        pooling: `cls` (a token in front) or `mean`.
        positions: `fixed` sinusoids, or `learned`.
        pair: two sequences a sample, each encoded alone.
        hash_: of EcoFormer's layers, see `ecoformer.training.hashing.HashConfig.options`.

    Example:
        >>> logits = Encoder(16, 10, 64, layers=2, heads=2, dim=32, inner=32, mlp=64)(tokens)   # (B, N) -> (B, 10)
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        max_length: int,
        attention: Arm = "ecoformer",
        layers: int = 4,
        heads: int = 8,
        dim: int = 512,
        inner: int = 512,
        mlp: int = 1024,
        dropout: float = 0.1,
        pooling: Literal["cls", "mean"] = "cls",
        positions: Literal["fixed", "learned"] = "fixed",
        pair: bool = False,
        hash_: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if min(layers, heads, dim, inner, mlp) < 1:
            raise UserError(f"layers {layers}, heads {heads}, widths {dim}, {inner}, {mlp}: each is 1 at least")
        self.attention, self.max_length, self.pooling, self.pair = attention, max_length, pooling, pair
        self.grad_checkpointing = False
        self.embed = nn.Embedding(vocabulary, dim)
        length = max_length + (pooling == "cls")
        if pooling == "cls":
            self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        if positions == "learned":
            self.positions = nn.Parameter(0.02 * torch.randn(length, dim))
        else:
            self.register_buffer("positions", sinusoids(length, dim), persistent=False)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            SequenceBlock(dim, sequence_attention(attention, dim, heads, inner, hash_ or {}), mlp, dropout)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        widths = [4 * dim, mlp, max(1, mlp // 2), classes] if pair else [dim, mlp, classes]
        self.head = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=1e-6)
        name_layers(self)

    positions: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N), or (B, 2, N) of pairs, -> (B, K)."""
        if self.pair:
            pooled = self.pooled(tokens.flatten(0, 1)).unflatten(0, (-1, 2))
            one, two = pooled.unbind(1)
            x = torch.cat([one, two, one * two, one - two], -1)  # "NLI" interaction
        else:
            x = self.pooled(tokens)
        for layer in self.head[:-1]:
            x = F.relu(layer(x))
        return self.head[-1](x)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass."""
        self.grad_checkpointing = enable

    def pooled(self, tokens: Tensor) -> Tensor:
        """(B, N) -> (B, D)."""
        mask = tokens > 0
        x = self.embed(tokens)
        if self.pooling == "cls":
            x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
            mask = torch.cat([torch.ones_like(mask[:, :1]), mask], 1)
        x = self.drop(x + self.positions[: x.shape[1]])
        for block in self.blocks:
            again = self.grad_checkpointing and self.training
            x = checkpoint(block, x, mask, use_reentrant=False) if again else block(x, mask)
        x = self.norm(x)
        if self.pooling == "cls":
            return x[:, 0]
        real = mask[..., None].to(x.dtype)
        return (x * real).sum(1) / real.sum(1).clamp_min(1)


def sinusoids(length: int, dim: int) -> Tensor:
    """(N, D): sines in the even, cosines in the odd channels."""
    place, channel = torch.arange(length)[:, None], torch.arange(0, dim, 2)
    angle = place * torch.exp(channel * (-math.log(10000.0) / dim))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :dim]
