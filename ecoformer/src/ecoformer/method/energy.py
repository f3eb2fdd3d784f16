"""The energy model: multiplications and additions of a network, and what they cost on a 45 nm chip.

A model and not a measurement: memory traffic does not enter. "script" is the released script's count, which the
paper's figures come from; "strict" also counts the squarings of the hash's distances as the multiplications they are
(1.4 % more energy for PVTv2-B0). Both begin with the layer counts of mmcv's counter, which sees Linear (inputs x
width, no bias), Conv2d (with bias) and LayerNorm (2 x elements) alone and enters both sums.

Shapes: N tokens, M keys, D dim = H C, H heads, C head width, m supports, b bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.method.attention import EcoFormerAttention
from ecoformer.method.performer import PerformerAttention
from ecoformer.method.shared_qk import SharedQKAttention
from ecoformer.method.softmax_attention import MSA, SRA, WindowMSA
from paperkit.errors import UserError
from paperkit.results.flops import on_meta

#: (pJ of a multiplication, of an addition), (um^2 of a multiplier, of an adder). fp32 stands in the released script;
#: the others are the usual table's (Horowitz, ISSCC 2014), from memory.
OPERATIONS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "fp32": ((3.7, 0.9), (7700, 4184)),
    "fp16": ((1.1, 0.4), (1640, 1360)),
    "int32": ((3.1, 0.1), (3495, 137)),
    "int8": ((0.2, 0.03), (282, 36)),
}

NOT_OVER_TOKENS = {"ChannelAttention": "channels attend", "ClassAttention": "the class token alone attends"}
"""Layers of timm that look like a self-attention over tokens, and why they are none."""


@dataclass(frozen=True)
class Operations:
    """Numbers of multiplications and additions; they add up, and know their cost."""

    mul: int = 0
    add: int = 0

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(self.mul + other.mul, self.add + other.add)

    def times(self, count: int) -> "Operations":
        """As often as that."""
        return Operations(count * self.mul, count * self.add)

    def energy_pj(self, precision: str = "fp32") -> float:
        """In pJ."""
        (mul, add), _ = OPERATIONS[precision]
        return mul * self.mul + add * self.add

    def area(self, precision: str = "fp32") -> float:
        """In um^2, were each operation a circuit of its own (as the released script adds them)."""
        _, (mul, add) = OPERATIONS[precision]
        return mul * self.mul + add * self.add


def softmax_operations(tokens: int, dim: int, heads: int, keys: int | None = None) -> Operations:
    """Both products and the scale: mul 2 N M D + H N M, add 2 N M D. Softmax and exp count 0, as in the script."""
    keys = tokens if keys is None else keys
    return Operations(2 * tokens * keys * dim + heads * tokens * keys, 2 * tokens * keys * dim)


def ecoformer_operations(
    tokens: int, dim: int, heads: int, nbits: int = 16, supports: int = 25, strict: bool = False
) -> Operations:
    """Hash and linear attention of one layer; `strict` adds the H N m C squarings of the distances."""
    n, h, c, m, b = tokens, heads, dim // heads, supports, nbits
    mul = 2 * h * n * m + h * n * m * b + h * n * b + h * n + h * n * c + (h * n * m * c if strict else 0)
    add = 2 * h * n * m * c + h * n * m * b + 2 * h * n * b + 2 * h * n * b * c + h * n * c
    return Operations(mul, add)


def performer_operations(tokens: int, dim: int, heads: int, features: int) -> Operations:
    """FAVOR+ (ours, not in the script): projections of q and k, both products and the normaliser; exp counts 0."""
    n, h, c, f = tokens, heads, dim // heads, features
    both = 4 * h * n * c * f + h * n * f
    return Operations(both + 3 * h * n * c, both + 2 * h * n * c)


@dataclass
class LayerEnergy:
    """One attention layer of a ledger.

    Attributes:
        name, kind: where and what. tokens, dim, heads: N, D and H.
        operations: of its attention alone, without its Linear layers. softmax: of full softmax attention in its place.
    """

    name: str
    kind: str
    tokens: int
    dim: int
    heads: int
    operations: Operations
    softmax: Operations


@dataclass
class Ledger:
    """What a network costs for one image.

    Attributes:
        params: parameters. layer_operations: count of Linear, Conv2d and LayerNorm.
        layers: the attention layers. strict: how they were counted.
    """

    params: int
    layer_operations: int
    strict: bool = False
    layers: list[LayerEnergy] = field(default_factory=list)

    @property
    def attention(self) -> Operations:
        """Of all attention layers."""
        return sum((layer.operations for layer in self.layers), Operations())

    @property
    def total(self) -> Operations:
        """Of everything counted."""
        return Operations(self.layer_operations, self.layer_operations) + self.attention

    def as_dict(self, precision: str = "fp32") -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "params": self.params,
            "layer_flops": self.layer_operations,
            "mul": self.total.mul,
            "add": self.total.add,
            "energy_pj": self.total.energy_pj(precision),
            "area": self.total.area(precision),
            "attention_energy_pj": self.attention.energy_pj(precision),
            "layers": [
                {**asdict(layer), "energy_pj": layer.operations.energy_pj(precision),
                 "softmax_energy_pj": layer.softmax.energy_pj(precision)}
                for layer in self.layers
            ],
        }  # fmt: skip


def _of_layer(module: nn.Module, x: Tensor, size: Any, strict: bool) -> tuple[str, Operations] | None:
    """(kind, operations) of an attention layer for one sample of its input (B, N, D); None for any other module."""
    if x.dim() != 3 or type(module).__name__ in NOT_OVER_TOKENS:
        return None
    tokens, dim = x.shape[1:]
    heads = getattr(module, "num_heads", 1)
    if isinstance(module, EcoFormerAttention):
        ksh = module.ksh
        return "ecoformer", ecoformer_operations(tokens, dim, heads, ksh.nbits, ksh.supports, strict)
    if isinstance(module, PerformerAttention):
        features = module.fast_attention.projection_matrix.shape[0]
        return "performer", performer_operations(tokens, dim, heads, features)
    name = type(module).__name__
    if isinstance(module, WindowMSA) or name == "LocallyGroupedAttn":
        window = module.window if isinstance(module, WindowMSA) else int(module.ws)  # type: ignore[arg-type]
        windows = -(-size[0] // window) * -(-size[1] // window)
        return "window", softmax_operations(window * window, dim, heads).times(windows)
    if isinstance(module, SRA) or (hasattr(module, "q") and hasattr(module, "kv") and hasattr(module, "sr")):
        keys = tokens
        if getattr(module, "pool", None) is not None:
            keys = 49
        elif isinstance(module, SRA) and module.sr_ratio > 1:
            keys = (size[0] // module.sr_ratio) * (size[1] // module.sr_ratio)
        elif not isinstance(module, SRA) and isinstance(module.sr, nn.Conv2d):
            keys = (size[0] // module.sr.stride[0]) * (size[1] // module.sr.stride[1])
        return "sra" if keys < tokens else "msa", softmax_operations(tokens, dim, heads, keys)
    if isinstance(module, SharedQKAttention):
        return "msa_share_qk", softmax_operations(tokens, dim, heads)
    if isinstance(module, MSA) or (hasattr(module, "qkv") and hasattr(module, "num_heads") and hasattr(module, "proj")):
        return "msa", softmax_operations(tokens, dim, heads)
    return None


def ledger(
    model: nn.Module | Callable[[], nn.Module],
    input_size: Sequence[int] = (3, 224, 224),
    *,
    strict: bool = False,
    inputs: Sequence[Any] | None = None,
) -> Ledger:
    """Counts a network's operations on the meta device; the network itself is left as it is.

    Args:
        model: ours, a converted one, or a timm ViT, PVTv2 or Twins; or a function that builds it.
        input_size: of one image. inputs: what else the network takes, batch of one, in place of an image.
        strict: see the head of this file.

    Raises:
        UserError: no attention layer of a known kind in it.

    Example:
        >>> ledger(PVTv2(**architecture("pvt_v2_b0_ecoformer"))).total.energy_pj()
        2489261066.4
    """
    if not isinstance(model, nn.Module):
        with torch.device("meta"):
            model = model()
    # The hashes' buffer `fitted` cannot be read on the meta device; `is_fitted` is what the layers go by.
    model = on_meta(model).eval()
    book = Ledger(sum(p.numel() for p in model.parameters()), 0, strict)
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, EcoFormerAttention):
            module.ksh.is_fitted = True

        def count(module: nn.Module, args: Any, out: Any, name: str = name) -> None:
            if isinstance(module, nn.Linear):
                book.layer_operations += args[0].numel() * module.out_features
            elif isinstance(module, nn.Conv2d):
                per_output = module.weight[0].numel()
                positions = out.shape[0] * out.shape[-1] * out.shape[-2] * module.out_channels
                book.layer_operations += positions * (per_output + (module.bias is not None))
            elif isinstance(module, nn.LayerNorm):
                book.layer_operations += 2 * args[0].numel()
            elif args and isinstance(args[0], Tensor):
                found = _of_layer(module, args[0], args[1] if len(args) > 1 else None, strict)
                if found is not None:
                    (parts, tokens, dim), heads = args[0].shape, getattr(module, "num_heads", 1)  # parts: its windows
                    full = softmax_operations(tokens, dim, heads).times(parts)
                    entry = LayerEnergy(name, found[0], tokens, dim, heads, found[1].times(parts), full)
                    book.layers.append(entry)

        hooks.append(module.register_forward_hook(count))
    with torch.no_grad(), torch.device("meta"):
        model(*(inputs if inputs is not None else (torch.empty(1, *input_size),)))
    for hook in hooks:
        hook.remove()
    if not book.layers:
        raise UserError(f"{type(model).__name__} has no attention layer of a kind that the energy model knows")
    return book
