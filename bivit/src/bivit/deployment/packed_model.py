"""`pack(model)`: a trained binary network with one bit per binary weight; same keys but for the packed ones."""

import copy
from dataclasses import dataclass, field

from timm.models.nest import TransformerLayer
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import nn

from bivit.deployment.packed_blocks import one_bit, served_attention, served_mlp
from bivit.deployment.packed_layers import (
    PackedAttention,
    PackedBlockAttention,
    PackedMlp,
    PackedNestLayer,
    PackedSwinBlock,
    PackedVitBlock,
    PackedWindowAttention,
    recast,
)
from bivit.deployment.packed_linear import PackedLinear
from bivit.method.attention import BinaryAttention, BlockAttention, WindowAttention
from bivit.method.binary_linear import BinaryLinear
from bivit.method.mlp import BinaryMlp
from paperkit.errors import UserError

FORMS: dict[type[nn.Module], type[nn.Module]] = {
    BinaryAttention: PackedAttention,
    WindowAttention: PackedWindowAttention,
    BlockAttention: PackedBlockAttention,
    BinaryMlp: PackedMlp,
    Block: PackedVitBlock,
    SwinTransformerBlock: PackedSwinBlock,
    TransformerLayer: PackedNestLayer,
}
"""Modules that hold packed linears, and the classes that give all of their work to one call of the kernels."""


@dataclass
class Packing:
    """What a packed network consists of.

    Attributes:
        zero_rules: of every packed linear. constant_rows: output channels whose weights are constant (their signs are
            0 and their outputs the bias alone), by layer.
        on_bits: attentions and MLPs that run on bits from end to end. floats: packed linears with float inputs.
    """

    zero_rules: dict[str, str] = field(default_factory=dict)
    constant_rows: dict[str, int] = field(default_factory=dict)
    on_bits: list[str] = field(default_factory=list)
    floats: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rules = [f"{list(self.zero_rules.values()).count(rule)} {rule}" for rule in ("ternary", "exact", "plus")]
        constant = sum(self.constant_rows.values())
        lines = [
            f"{len(self.zero_rules)} packed linears (zero rule: {', '.join(r for r in rules if r[0] != '0')})",
            f"{len(self.on_bits)} attentions and MLPs on bits from end to end",
        ]
        lines += [f"{len(self.floats)} linears with float inputs: packed in memory, computed in float"] * bool(
            self.floats
        )
        lines += [f"{constant} rows of constant weights in {', '.join(self.constant_rows)}"] * bool(constant)
        return "\n".join(lines)


def pack(model: nn.Module) -> nn.Module:
    """A copy of a binarized network over packed weights, for inference; `packing(it)` says what became of it.

    Any network whose binary linears take signs (or floats: W1A32) is packed. Attention, MLP and timm's blocks of ViT,
    Swin and NesT run on bits from end to end; around others every linear packs its own inputs.

    Raises:
        UserError: no binary linear, or one that one bit cannot hold (its name is said).
    """
    if any(isinstance(part, PackedLinear) for part in model.modules()):
        raise UserError("the network is packed already")
    model = copy.deepcopy(model)
    names = [name for name, part in model.named_modules() if isinstance(part, BinaryLinear)]
    if not names:
        raise UserError("the network has no binary linear; bivit.binarize makes one that has")
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, BinaryLinear)
        replace(model, name, PackedLinear.of(layer, name, ternary_inputs=name.endswith("attn.proj")))
    return with_packed_forms(model)


def with_packed_forms(model: nn.Module) -> nn.Module:
    """The classes around packed linears replaced, in place, and the whole set to evaluation."""
    for name, part in list(model.named_modules()):
        form = FORMS.get(type(part))
        if form is not None and any(isinstance(inner, PackedLinear) for inner in part.modules()):
            new = recast(form, part)
            if not name:
                model = new
            else:
                replace(model, name, new)
    return model.eval().requires_grad_(False)


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Puts a module in the place of that name."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, new)


def packing(model: nn.Module) -> Packing:
    """The report on a packed network."""
    report = Packing()
    for name, part in model.named_modules():
        if isinstance(part, PackedLinear):
            report.zero_rules[name] = part.zero
            if constant := int((part.scale == 0).sum()):
                report.constant_rows[name] = constant
            if not one_bit(part):
                report.floats.append(name)
        elif served_attention(part) or served_mlp(part):
            report.on_bits.append(name)
    return report
