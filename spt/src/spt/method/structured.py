"""Structured tuning: a low-rank module beside a weight matrix (paper section 3.3; LoRA and Adapter as released).

Shapes: B batch, N tokens, I input width, O output width, r rank.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

StructuredType = Literal["lora", "adapter", "lora_bias"]
Init = Literal["zero", "official"]


class StructuredModule(nn.Module):
    """`lora`: x A^T B^T with scale 1; `adapter`: GELU(x A^T + a) B^T + b; `lora_bias`: LoRA with a bias on B.

    Args:
        in_features: I.
        out_features: O.
        rank: r (8 in every released run).
        kind: one of the three forms above.
        bias: biases of an adapter; `lora` has none and `lora_bias` always one.
        init: `zero` starts the up projection at zero, so that tuning starts from the pre-trained function;
            `official` is what the released constructor really does, both projections truncated normal of std 0.02.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int = 8,
        kind: StructuredType = "lora",
        bias: bool = True,
        init: Init = "zero",
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank {rank} is not a positive number")
        if kind == "adapter":
            layers = [nn.Linear(in_features, rank, bias), nn.GELU(), nn.Linear(rank, out_features, bias)]
        elif kind in ("lora", "lora_bias"):
            layers = [nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features, bias=kind == "lora_bias")]
        else:
            raise ValueError(f"structured type {kind!r} is not lora, adapter or lora_bias")
        self.kind, self.rank = kind, rank
        self.learnable = nn.Sequential(*layers)
        self.reset(init)

    @property
    def down(self) -> nn.Linear:
        """I -> r."""
        return self.learnable[0]  # type: ignore[return-value]

    @property
    def up(self) -> nn.Linear:
        """r -> O."""
        return self.learnable[-1]  # type: ignore[return-value]

    def reset(self, init: Init) -> None:
        """Draws the weights anew; biases become zero."""
        for layer in (self.down, self.up):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if init == "zero":
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.up.weight)
        else:
            nn.init.trunc_normal_(self.down.weight, std=0.02)
            nn.init.trunc_normal_(self.up.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return self.learnable(x)

    @property
    def mergeable(self) -> bool:
        """True when the module is linear in its input, so that it folds into the weight (section 3.3)."""
        return self.kind != "adapter"

    @torch.no_grad()
    def weight_delta(self) -> Tensor:
        """B A, [O, I]: what a linear module adds to the weight.

        Raises:
            ValueError: for an adapter, which has no such matrix.
        """
        if not self.mergeable:
            raise ValueError("an adapter is not linear and cannot be folded into a weight")
        return self.up.weight @ self.down.weight


def module_cost(kind: str, shape: torch.Size, rank: int) -> int:
    """Parameters counted for a module on a matrix [O, I] (paper section 3.3; the released cost function).

    LoRA costs r (I + O). An adapter stands on the output and costs 2 r O, with its two biases r + O more; these are
    counted even where an adapter has none (`structured_vector` off), as released.
    """
    out_features, in_features = shape
    if kind == "adapter":
        return 2 * rank * out_features + rank + out_features
    return rank * (in_features + out_features)
