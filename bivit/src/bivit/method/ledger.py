"""Operations and bytes of a network, as the paper counts them and as they are (section 4, tables 3 and 4).

The paper states BOPs / 64 + FLOPs. What it counts besides was found by trying until its table came out:
    OPs = F + BOPs / 64,   F = multiply-adds of float convolutions and linears + 5 per element of every LayerNorm,
where a W1A32 MLP counts half its multiply-adds, and softmax, GELU, biases and residuals count nothing; bytes are
4 per parameter, and 1 bit for ALL parameters inside `attn` and `mlp`, scales not counted. The true bytes are 1 bit per
binary weight, and everything else, biases and scales included, as it is.

Shapes: N queries, M keys, H heads, d head width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bivit.method.attention import BinaryAttention
from bivit.method.binary_linear import BinaryLinear
from paperkit.errors import UserError
from paperkit.results.flops import on_meta

VARIANTS = ("fp", "stage1", "w1a32", "w1a1")
"""Nothing binary; attention (first stage of CLB); MLPs with float inputs too; everything."""
SIZES = ("fp", "paper", "packed_fp32_rest", "packed_fp16_rest")


def transformer_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of everything that has an `attn` and an `mlp`."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, "attn", None), nn.Module) and isinstance(getattr(module, "mlp", None), nn.Module):
            yield name, module


@dataclass(frozen=True)
class LayerCost:
    """One binary (or to be binary) linear, or the two products of one attention.

    Attributes:
        name, kind: "attention_linear", "attention_matmul" or "mlp_linear".
        macs: multiply-adds of one image.
        words: 64-bit words that a packed kernel counts for them; twice that with a plane of non-zeros.
        weights, outputs: of a linear; 0 for products.
        weight_bits, input_bits: 1 or 32.
    """

    name: str
    kind: str
    macs: int
    words: int
    weights: int = 0
    outputs: int = 0
    weight_bits: int = 32
    input_bits: int = 32


@dataclass
class Ledger:
    """What a network costs for one image. Scales of binary layers are in no count of parameters.

    Attributes:
        params, params_in_attn_and_mlp: numbers of parameters.
        float_macs: multiply-adds of convolutions, and of linears outside `attn` and `mlp`.
        layer_norm_elements: entries that LayerNorms see.
        layers: linears and products of the blocks.
    """

    params: int = 0
    params_in_attn_and_mlp: int = 0
    float_macs: int = 0
    layer_norm_elements: int = 0
    layers: list[LayerCost] = field(default_factory=list)

    @property
    def binary_weights(self) -> int:
        """Weights of the linears in attention and MLPs."""
        return sum(layer.weights for layer in self.layers)

    @property
    def output_channels(self) -> int:
        """Their outputs: the number of scales."""
        return sum(layer.outputs for layer in self.layers)

    def macs_of(self, kind: str) -> int:
        """Multiply-adds of one kind of layer."""
        return sum(layer.macs for layer in self.layers if layer.kind == kind)

    @property
    def macs(self) -> dict[str, int]:
        """Multiply-adds by kind; "full_precision" is what stays float."""
        kinds = ("attention_linear", "attention_matmul", "mlp_linear")
        return {"full_precision": self.float_macs, **{kind: self.macs_of(kind) for kind in kinds}}

    def ops(self, variant: str) -> float:
        """The paper's OPs of one of `VARIANTS`; a whole number for "fp".

        Raises:
            UserError: no such variant.
        """
        if variant not in VARIANTS:
            raise UserError(f"variant '{variant}' does not exist; known: {', '.join(VARIANTS)}")
        base, mlp = self.float_macs + 5 * self.layer_norm_elements, self.macs_of("mlp_linear")
        attention = self.macs_of("attention_linear") + self.macs_of("attention_matmul")
        if variant == "fp":
            return base + attention + mlp
        if variant == "stage1":
            return base + mlp + attention / 64
        if variant == "w1a32":
            return base + mlp / 2 + attention / 64
        return base + (attention + mlp) / 64

    @property
    def ops_as_built(self) -> float:
        """The paper's OPs of the network as it is: each layer by its own bits."""
        total = float(self.float_macs + 5 * self.layer_norm_elements)
        for layer in self.layers:
            bits = (layer.weight_bits, layer.input_bits)
            total += layer.macs / (64 if bits == (1, 1) else 1 if bits == (32, 32) else 2)
        return total

    @property
    def popcounts(self) -> int:
        """64-bit words whose bits a packed network counts for one image, one plane; 0 for a float one."""
        return sum(layer.words for layer in self.layers if (layer.weight_bits, layer.input_bits) == (1, 1))

    @property
    def size_bytes(self) -> dict[str, float]:
        """Bytes by each of `SIZES`, with every linear of the blocks binary."""
        inside, weights = self.params_in_attn_and_mlp, self.binary_weights
        rest = self.params - weights + self.output_channels
        return {
            "fp": 4 * self.params,
            "paper": 4 * (self.params - inside) + inside / 8,
            "packed_fp32_rest": _whole(weights / 8 + 4 * rest),
            "packed_fp16_rest": _whole(weights / 8 + 2 * rest),
        }

    def bytes_as_built(self, rest_bytes: int = 4) -> float:
        """Bytes of the network as it is, one bit per weight that is binary; rows are not padded."""
        binary = [layer for layer in self.layers if layer.weight_bits == 1]
        weights, scales = sum(layer.weights for layer in binary), sum(layer.outputs for layer in binary)
        return _whole(weights / 8 + rest_bytes * (self.params - weights + scales))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "params": self.params,
            "params_in_attn_and_mlp": self.params_in_attn_and_mlp,
            "binary_weights": self.binary_weights,
            "output_channels": self.output_channels,
            "macs": self.macs,
            "layer_norm_elements": self.layer_norm_elements,
            "ops": {variant: self.ops(variant) for variant in VARIANTS},
            "size_bytes": self.size_bytes,
            "ops_as_built": self.ops_as_built,
            "popcounts": self.popcounts,
        }


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def ledger(model: nn.Module | Callable[[], nn.Module], input_size: Sequence[int] = (3, 224, 224)) -> Ledger:
    """Counts a float or binary network on the meta device; the network itself is left as it is.

    Args:
        model: blocks with `attn` and `mlp` (timm's ViT, Swin, NesT, PVTv2), or a function that builds one.
        input_size: of one image.

    Raises:
        UserError: no such block in it.

    Example:
        >>> ledger(lambda: timm.create_model("deit_small_patch16_224")).ops("w1a1")
        138591120.0
    """
    if not isinstance(model, nn.Module):
        with torch.device("meta"):
            model = model()
    model = on_meta(model).eval()
    inside = {}
    for name, block in transformer_blocks(model):
        for part in ("attn", "mlp"):
            inside[f"{name}.{part}".removeprefix(".")] = (part, block.get_submodule(part))
    if not inside:
        raise UserError(f"{type(model).__name__} has no block with attn and mlp; counted are ViT, Swin, NesT, PVTv2")
    book = Ledger()
    for name, value in model.named_parameters():
        if not name.endswith("scaling_factor"):
            book.params += value.numel()
            book.params_in_attn_and_mlp += value.numel() * any(name.startswith(f"{place}.") for place in inside)
    keys: dict[str, int] = {}

    def count(name: str, module: nn.Module, args: Any, out: Any) -> None:
        place = next((place for place in inside if name == place or name.startswith(f"{place}.")), None)
        if isinstance(module, nn.Linear) and place is not None:
            book.layers.append(_linear(name, f"{_KINDS[inside[place][0]]}_linear", module, out))
            if name == f"{place}.kv":
                keys[place] = out.shape[-2]
        elif isinstance(module, nn.Linear):
            book.float_macs += out.numel() * module.in_features
        elif isinstance(module, nn.Conv2d):
            book.float_macs += out.numel() * module.weight[0].numel()
        elif isinstance(module, nn.LayerNorm):
            book.layer_norm_elements += out.numel()
        elif place == name and inside[name][0] == "attn":
            book.layers.append(_products(name, module, args[0], keys.get(name)))

    hooks = [
        module.register_forward_hook(lambda module, args, out, name=name: count(name, module, args, out))
        for name, module in model.named_modules()
    ]
    with torch.no_grad(), torch.device("meta"):
        model(torch.empty(1, *input_size))
    for hook in hooks:
        hook.remove()
    return book


_KINDS = {"attn": "attention", "mlp": "mlp"}


def _linear(name: str, kind: str, module: nn.Linear, out: Tensor) -> LayerCost:
    words = out.numel() * -(-module.in_features // 64)
    bits = {}
    if isinstance(module, BinaryLinear):
        bits["weight_bits"] = 1 if module.rule.weights == "sign" else 32
        bits["input_bits"] = 32 if module.rule.inputs == "float" else 1
    return LayerCost(
        name, kind, out.numel() * module.in_features, words, module.weight.numel(), module.out_features, **bits
    )


def _products(name: str, module: nn.Module, x: Tensor, keys: int | None) -> LayerCost:
    """q k^T and b v of every head: N M d multiply-adds each."""
    *parts, tokens, _ = x.shape
    keys = tokens if keys is None else keys
    layer: Any = module
    width, heads = int(layer.proj.in_features), int(layer.num_heads)
    pairs, bits = torch.Size(parts).numel() * tokens, 1 if isinstance(module, BinaryAttention) else 32
    # Rows of bits of q and k (d of a head), one word count per pair; rows of scores (M keys) against each channel of v.
    words = pairs * (keys * heads * -(-(width // heads) // 64) + width * -(-keys // 64))
    return LayerCost(name, "attention_matmul", 2 * pairs * keys * width, words, weight_bits=bits, input_bits=bits)
