"""The small networks of parts B and C, and the attentions that they differ in.

Shapes: B batch, N tokens, D width, C head width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.experiment import settings as names
from ecoformer.experiment.cluster_majority import FEATURES
from ecoformer.method.attention import EcoFormerAttention
from ecoformer.method.hash_fit import FitOptions
from ecoformer.method.kernel_hash import normalise, sign_straight_through
from ecoformer.method.linear_attention import bias_value, linear_attention
from ecoformer.method.performer import PerformerAttention
from ecoformer.method.shared_qk import SharedQKAttention
from ecoformer.method.softmax_attention import MSA, join_heads, split_heads

WIDTH, HEADS, BITS = 32, 2, 16
LOW_BIAS, POWER = 4.0, 8.0


@dataclass(frozen=True)
class Hashed:
    """What a part says of its hashes: supports m, labels k of each sign in a row, iterations of a fit for each bit."""

    supports: int
    topk: int
    iterations: int


class SignAttention(nn.Module):
    """EcoFormer's attention over the signs of the normalised vectors themselves: no hash, no fit, C bits."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.bias = num_heads, bias_value(dim // num_heads)
        self.to_qk, self.to_v, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        qk, v = (split_heads(layer(x), self.num_heads) for layer in (self.to_qk, self.to_v))
        codes = sign_straight_through(normalise(qk))
        return self.proj(join_heads(linear_attention(codes, codes, v, self.bias)))


class MeanOfValues(nn.Module):
    """Every token gets the mean of the values: what is left without attention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_v, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.proj(self.to_v(x).mean(1, keepdim=True).expand_as(x))


def attention(arm: str, hashed: Hashed) -> nn.Module:
    """The attention layer of an arm, by the names in `settings`."""

    def eco(method: str = "released", lr: float | None = None, **binary: Any) -> EcoFormerAttention:
        fit = FitOptions(method, lr=lr, topk=hashed.topk, iterations=hashed.iterations)
        return EcoFormerAttention(WIDTH, HEADS, BITS, hashed.supports, fit=fit, **binary)

    def low_bias() -> EcoFormerAttention:
        layer = eco()
        layer.fast_attention.bias = LOW_BIAS  # below b, where a similarity may be negative: ours, not the paper's
        return layer

    builders: dict[str, Callable[[], nn.Module]] = {
        names.SOFTMAX: lambda: MSA(WIDTH, HEADS),
        names.SHARED: lambda: SharedQKAttention(WIDTH, HEADS),
        names.PERFORMER: lambda: PerformerAttention(WIDTH, HEADS),
        names.MEAN: lambda: MeanOfValues(WIDTH),
        names.SIGN: lambda: SignAttention(WIDTH, HEADS),
        names.ECO: eco,
        names.WORKING: lambda: eco("released", 0.5),
        names.CONSISTENT: lambda: eco("released", 0.5, bias_mode="global"),
        names.RANDOM: lambda: eco("random"),
        names.OFTEN: lambda: eco("released", 0.5),
        names.TRAINED: lambda: eco(trainable=True),
        names.POWER: lambda: eco(bias_mode="global", power=POWER),
        names.TRAINED_POWER: lambda: eco(bias_mode="global", power=POWER, trainable=True),
        names.LOW_BIAS: low_bias,
    }
    return builders[arm]()


class Block(nn.Module):
    """Pre-norm: attention, then an MLP of twice the width, each added to its input."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(WIDTH), attention, nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DigitNetwork(nn.Module):
    """Part B: a convolution of stride 2 to tokens, learned places, two blocks, the mean of the tokens.

    Args:
        arm: which attention. hashed: of its hashes.
        side: of the images, in pixels; N = (side / 2)^2.
    """

    def __init__(self, arm: str, hashed: Hashed, side: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3, stride=2, padding=1)
        self.places = nn.Parameter(0.02 * torch.randn(1, (side // 2) ** 2, WIDTH))
        self.blocks = nn.Sequential(*(Block(attention(arm, hashed)) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, side, side) to logits (B, 10)."""
        x = self.stem(images).flatten(2).mT + self.places
        return self.head(self.norm(self.blocks(x)).mean(1))


class MajorityNetwork(nn.Module):
    """Part C: one block, read at token 0."""

    def __init__(self, arm: str, hashed: Hashed) -> None:
        super().__init__()
        self.embed, self.block = nn.Linear(FEATURES + 1, WIDTH), Block(attention(arm, hashed))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D + 1) to logits (B, 2)."""
        return self.head(self.norm(self.block(self.embed(tokens))[:, 0]))
