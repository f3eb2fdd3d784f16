"""`binarize(model, config)`: any timm ViT, DeiT, Swin, NesT or PVTv2 with attention and MLPs of one bit, in place.

Weights are kept, as the same parameters; learned scales start from them. All blocks are changed or none: a block whose
attention or MLP has no place for one of its parts (rotary positions, gates, norms of queries) is refused by name.
"""

import re
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from timm.layers import Attention as VisionAttention
from timm.layers import Mlp
from timm.models.nest import Attention as NestAttention
from timm.models.pvt_v2 import Attention as PyramidAttention
from timm.models.pvt_v2 import MlpWithDepthwiseConv
from timm.models.swin_transformer import WindowAttention as SwinAttention
from torch import nn

from bivit.method.attention import BinaryAttention, BlockAttention, Normalize, ReducedAttention, WindowAttention
from bivit.method.attention_rules import BoolScores, ElasticScores, NaiveScores
from bivit.method.binary_linear import BinaryLinear, LinearRule, binary_linear_of, rule_of
from bivit.method.ledger import transformer_blocks
from bivit.method.mlp import Activation, BinaryMlp, activation_layer, second_rule
from bivit.method.sign import Zero
from bivit.method.softmax_aware import Backward, SoftmaxAware
from paperkit.errors import UserError

AttentionRule = Literal["sab", "bool", "naive", "elastic", "float"]
Bits = Literal["w1a1", "w1a32", "w32a1", "float"]


@dataclass(frozen=True)
class BinaryConfig:
    """What becomes binary, and by which rules.

    Attributes:
        attention: rule of the attention scores: "sab" (the paper), "bool" (BiBERT), "naive", "elastic" (BiT); "float"
            leaves attention modules as they are.
        attention_linear: rule of qkv and proj, a name of `bivit.method.binary_linear.RULES`.
        attention_bits: "w1a1", or "w32a1" (first of the classical two steps).
        mlp: "w1a1", "w1a32", "w32a1" or "float" (first stage of CLB).
        mlp_linear: rule of fc1 and fc2.
        activation: between them: "gelu" (the network's own stays), "relu" (BiT) or "rprelu" (ReActNet).
        beta: SAB's share of the row's maximum. backward: SAB's gradient.
        normalize: "count" divides a row's sum by its number of active keys (ours; the sign after it is the same, the
            gradient is not).
        v_scale: multiplies a row's sum by v, the mean of its active scores (equation 7; optional in the paper).
        zero: sign(0) of all inputs, "ternary" (released) or "plus" (one bit can hold it).
        thresholds: a learned threshold per channel before the sign of every linear (RSign; ours).
        depth: share of the blocks, from the input on, that are binarized.

    Raises:
        UserError: a value that does not exist, of another type, or out of range.
    """

    attention: AttentionRule = "sab"
    attention_linear: str = "pws"
    attention_bits: Literal["w1a1", "w32a1"] = "w1a1"
    mlp: Bits = "w1a32"
    mlp_linear: str = "pws"
    activation: Activation = "gelu"
    beta: float = 0.25
    backward: Backward = "softmax"
    normalize: Normalize = "none"
    v_scale: bool = False
    zero: Zero = "ternary"
    thresholds: bool = False
    depth: float = 1.0

    def __post_init__(self) -> None:
        for item in fields(self):
            known, value = get_args(item.type), getattr(self, item.name)
            if known and value not in known:
                raise UserError(f"{item.name} '{value}' does not exist; known: {', '.join(known)}")
            if item.type is float and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise UserError(f"{item.name} {value!r:.40} is no number")
            if item.type in (bool, str) and type(value) is not item.type:
                raise UserError(f"{item.name} {value!r:.40} is no {'yes or no' if item.type is bool else 'name'}")
        rule_of(self.attention_linear)
        rule_of(self.mlp_linear)
        SoftmaxAware(self.beta, self.backward)
        if not 0 < self.depth <= 1:
            raise UserError(f"depth {self.depth} is outside (0, 1]: it is the share of the blocks that are binarized")

    def linear(self, of: Literal["attention", "mlp"]) -> LinearRule:
        """The rule of the linears of attention or MLP with this config's bits."""
        rule, bits = (
            (rule_of(self.attention_linear), self.attention_bits)
            if of == "attention"
            else (rule_of(self.mlp_linear), self.mlp)
        )
        if self.thresholds and rule.inputs == "sign":
            rule = replace(rule, inputs="threshold")
        return rule.float_inputs if bits == "w1a32" else rule.float_weights if bits == "w32a1" else rule

    def scores(self) -> nn.Module:
        """A new layer from logits to binary scores."""
        if self.attention == "sab":
            return SoftmaxAware(self.beta, self.backward)
        return {"bool": BoolScores, "naive": NaiveScores, "elastic": ElasticScores}[self.attention]()


METHODS: dict[str, BinaryConfig] = {
    "bivit": BinaryConfig(),
    "bivit_mean": BinaryConfig(attention_linear="mean", mlp_linear="mean"),
    "naive": BinaryConfig(attention="naive"),
    "bibert": BinaryConfig("bool", "mean", mlp_linear="mean"),
    "bibert_original": BinaryConfig("bool", "bibert", mlp_linear="bibert"),
    "bit": BinaryConfig("elastic", "bit", mlp_linear="bit", activation="relu"),
    "bit_gelu": BinaryConfig("elastic", "bit_channels", mlp_linear="bit_channels"),
    "xnor": BinaryConfig("bool", "xnor", mlp_linear="xnor"),
    "bireal": BinaryConfig("bool", "bireal", mlp_linear="bireal"),
    "reactnet": BinaryConfig("bool", "reactnet", mlp_linear="reactnet", activation="rprelu"),
}
"""Methods by name, with W1A32 MLPs; `dataclasses.replace(METHODS["bivit"], mlp="w1a1")` and so on.

"bibert" is the released baseline attention (bool scores, mean scale); "bibert_original" has the gradients of BiBERT's
own code. "bit_gelu" is the BiT of the embedded experiment: GELU kept, mean scale per channel. The binary networks for
images (xnor, bireal, reactnet) say nothing of attention and get BiBERT's scores here."""

TRAININGS: dict[str, int] = {"one_step": 1, "clb": 2, "two_steps": 2, "depth": 4}
"""Stages of each training: at once; attention, then MLPs (CLB); inputs, then weights (TS); quarters of the depth."""


def stage_config(config: BinaryConfig, training: str, stage: int) -> BinaryConfig:
    """What is binary in a stage, from 1 on; in the last one it is `config` itself.

    Raises:
        UserError: no such training or stage; or stages of what the config does not make binary.
    """
    if training not in TRAININGS:
        raise UserError(f"training '{training}' does not exist; known: {', '.join(TRAININGS)}")
    if not 1 <= stage <= TRAININGS[training]:
        raise UserError(f"stage {stage} does not exist; '{training}' has stages 1 to {TRAININGS[training]}")
    if training == "clb" and "float" in (config.mlp, config.attention):
        raise UserError(
            "training 'clb' makes attention binary first and MLPs then; this config leaves one of them float"
        )
    if stage == TRAININGS[training]:
        return config
    if training == "clb":
        return replace(config, mlp="float")
    if training == "two_steps":
        # A W1A32 MLP has no binary input: nothing of it is binary in the first step.
        return replace(config, attention_bits="w32a1", mlp="w32a1" if config.mlp == "w1a1" else "float")
    return replace(config, depth=config.depth * stage / TRAININGS[training])


@dataclass(frozen=True)
class LayerChange:
    """One attention or MLP module: its name, what it was and what it is now."""

    name: str
    was: str
    now: str

    def __str__(self) -> str:
        return f"{self.name}: {self.was} -> {self.now}"


@dataclass
class Report:
    """What `binarize` did; `print` shows it, like modules of different blocks on one line.

    Attributes:
        changed: attention and MLP modules. stays: (name, numbers) of every parameter that stays float, with "*" for
            the number of a block.
        binary_weights: numbers of one bit now.
    """

    config: BinaryConfig
    changed: list[LayerChange] = field(default_factory=list)
    stays: list[tuple[str, int]] = field(default_factory=list)
    binary_weights: int = 0

    def __str__(self) -> str:
        counted: dict[str, int] = {}
        for change in self.changed:
            line = str(replace(change, name=_any_block(change.name)))
            counted[line] = counted.get(line, 0) + 1
        lines = [f"{line}  ({count}x)" for line, count in counted.items()]
        lines.append(
            f"{self.binary_weights:,} weights of one bit; {sum(n for _, n in self.stays):,} numbers stay float:"
        )
        lines += [f"  {name}  {numbers:,}" for name, numbers in self.stays]
        return "\n".join([*lines, "  and the residual stream, the inputs of softmax and of the activation"])


def binary_layers(model: nn.Module) -> dict[str, BinaryLinear]:
    """Names and modules of the binary linears, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BinaryLinear)}


def binarize(model: nn.Module, config: BinaryConfig | str = "bivit") -> Report:
    """Makes the blocks of a network binary, in place.

    Args:
        model: a timm VisionTransformer (DeiT, with distillation token or registers), SwinTransformer, Nest or
            PyramidVisionTransformerV2, or anything built of their attention and MLP modules.
        config: a config, or a name of `METHODS`.

    Returns:
        What changed, and the list of what stays float.

    Raises:
        UserError: a network that is binary already, one without a block of a known kind, or one with a part that has
            no binary form; the model is then as it was.

    Example:
        >>> print(binarize(timm.create_model("deit_tiny_patch16_224"), "bivit"))
    """
    if isinstance(config, str):
        if config not in METHODS:
            raise UserError(f"method '{config}' does not exist; known: {', '.join(METHODS)}")
        config = METHODS[config]
    if found := binary_layers(model):
        raise UserError(
            f"this {type(model).__name__} is binary already ({next(iter(found))}, {len(found)} layers); "
            "binarize a float one, or go on to another stage with set_stage"
        )
    return _apply(model, config)


def set_stage(model: nn.Module, config: BinaryConfig, stage: int, training: str = "clb") -> Report:
    """Brings a network to a stage of its training, from float or from an earlier stage; learned scales are kept.

    Args:
        model: see `binarize`. config: the end of the training.
        stage: from 1 on. training: a name of `TRAININGS`.

    Raises:
        UserError: as `binarize` and `stage_config` do; or a network that is farther than that stage.
    """
    return _apply(model, stage_config(config, training, stage))


def _apply(model: nn.Module, config: BinaryConfig) -> Report:
    blocks = list(transformer_blocks(model))
    if not blocks:
        raise UserError(
            f"{type(model).__name__} has no block with one attn and one mlp, as ViT, DeiT, Swin, NesT and PVTv2 have"
        )
    chosen = blocks[: max(1, round(config.depth * len(blocks)))]
    for name, block in blocks:  # all is checked before anything changes
        for part, known in _KINDS.items():
            module = block.get_submodule(part)
            if why := _unfit(module, known):
                raise UserError(f"{name}.{part}, {type(module).__name__}, cannot be binary: {why}")
            if _is_binary(module) and not (_wanted(config, part) and (name, block) in chosen):
                raise UserError(f"{name}.{part} is binary already, and this stage has it float; load the float weights")
    report = Report(config)
    for name, block in chosen:
        for part, change in (("attn", _attention), ("mlp", _mlp)):
            old = block.get_submodule(part)
            if _wanted(config, part):
                new = change(old, config)
                setattr(block, part, new)
                report.changed.append(
                    LayerChange(f"{name}.{part}".removeprefix("."), type(old).__name__, _describe(new, config))
                )
    model.binary_config = config  # type: ignore[assignment]
    _list_float(model, report)
    return report


def _wanted(config: BinaryConfig, part: str) -> bool:
    return (config.attention if part == "attn" else config.mlp) != "float"


def _is_binary(module: nn.Module) -> bool:
    return any(isinstance(inner, BinaryLinear) for inner in module.modules())


_KNOWN_PARTS = {
    VisionAttention: {"qkv", "proj", "attn_drop", "proj_drop"},
    SwinAttention: {"qkv", "proj", "attn_drop", "proj_drop", "softmax"},
    NestAttention: {"qkv", "proj", "attn_drop", "proj_drop"},
    PyramidAttention: {"q", "kv", "proj", "attn_drop", "proj_drop", "sr", "norm"},
    Mlp: {"fc1", "act", "drop1", "fc2", "drop2"},
    MlpWithDepthwiseConv: {"fc1", "dwconv", "act", "fc2", "drop"},
}
"""Modules of timm with a binary form, and the parts of them that have a place in it."""
_KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "attn": (VisionAttention, SwinAttention, NestAttention, PyramidAttention),
    "mlp": (Mlp, MlpWithDepthwiseConv),
}
_GAPS = {
    "q_norm": "queries and keys are normalised (qk_norm)",
    "k_norm": "queries and keys are normalised (qk_norm)",
    "gate": "its output is gated",
    "norm": "it has a norm inside",
    "pool": "keys are pooled (linear attention)",
    "relu": "it has a second activation",
}


def _unfit(module: nn.Module, known: tuple[type[nn.Module], ...]) -> str:
    """Why a module has no binary form, or an empty text."""
    if isinstance(module, BinaryAttention | BinaryMlp):
        return ""
    if type(module) not in known:
        names = ", ".join(sorted({kind.__name__ for kind in known}))
        return f"only timm's {names} of ViT, Swin, NesT and PVTv2 have a binary form"
    for name, child in module.named_children():
        if name not in _KNOWN_PARTS[type(module)] and not isinstance(child, nn.Identity):
            return _GAPS.get(name, f"its {name} has no place in the binary form")
    for name in ("fc1", "fc2"):
        if hasattr(module, name) and not isinstance(module.get_submodule(name), nn.Linear):
            return f"its {name} is a {type(module.get_submodule(name)).__name__}"
    return ""


def _attention(old: nn.Module, config: BinaryConfig) -> nn.Module:
    """The binary form of an attention module around its parameters; a binary one gets the linears of this config."""
    rule = config.linear("attention")
    o: Any = old
    if isinstance(old, BinaryAttention):
        for name in ("qkv", "q", "kv", "proj"):
            if hasattr(old, name):
                setattr(old, name, binary_linear_of(getattr(o, name), rule, config.zero))
        return old
    dim = (o.qkv if hasattr(o, "qkv") else o.q).in_features
    options: dict[str, Any] = dict(
        normalize=config.normalize, v_scale=config.v_scale, zero=config.zero, attn_drop=o.attn_drop.p,
        proj_drop=o.proj_drop.p,
    )  # fmt: skip
    scores, width = config.scores(), o.proj.in_features // o.num_heads
    new: BinaryAttention
    if isinstance(old, VisionAttention):
        new = BinaryAttention(dim, o.num_heads, rule, scores, head_dim=width, out_dim=o.proj.out_features, **options)
    elif isinstance(old, SwinAttention):
        new = WindowAttention(dim, o.num_heads, o.window_size, rule, scores, head_dim=width, **options)
    elif isinstance(old, NestAttention):
        new = BlockAttention(dim, o.num_heads, rule, scores, **options)
    else:
        new = ReducedAttention(dim, o.num_heads, rule, scores, reduction=o.sr, norm=o.norm, **options)
    new.to(device=o.proj.weight.device, dtype=o.proj.weight.dtype)
    if isinstance(new, WindowAttention):
        new.relative_position_bias_table = o.relative_position_bias_table
    for name in ("qkv", "q", "kv", "proj"):
        if hasattr(old, name):
            setattr(new, name, binary_linear_of(getattr(o, name), rule, config.zero))
    return new.train(old.training)


def _mlp(old: nn.Module, config: BinaryConfig) -> nn.Module:
    """The binary form of an MLP around its parameters."""
    rule = config.linear("mlp")
    o: Any = old
    if isinstance(old, Mlp):
        act = o.act if config.activation == "gelu" else activation_layer(config.activation, o.fc1.out_features)
        new = BinaryMlp(o.fc1.in_features, o.fc1.out_features, rule, act, out_dim=o.fc2.out_features, zero=config.zero)
        new.to(device=o.fc1.weight.device, dtype=o.fc1.weight.dtype)
        new.drop1, new.drop2 = o.drop1, o.drop2
    else:
        # PVTv2's has a float convolution between fc1 and the activation: the module stays, its linears change.
        new = o
        if isinstance(old, MlpWithDepthwiseConv) and config.activation != "gelu" and not _is_binary(old):
            new.act = activation_layer(config.activation, o.fc1.out_features)
            new.act.to(device=o.fc1.weight.device, dtype=o.fc1.weight.dtype)
    new.fc1 = binary_linear_of(o.fc1, rule, config.zero)
    new.fc2 = binary_linear_of(o.fc2, second_rule(rule, new.act), config.zero)
    return new.train(old.training)


def _describe(module: nn.Module, config: BinaryConfig) -> str:
    if isinstance(module, BinaryAttention):
        return f"{type(module).__name__} {config.attention}, {config.attention_bits} {config.attention_linear}"
    return f"{type(module).__name__} {config.mlp} {config.mlp_linear}"


def _any_block(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _list_float(model: nn.Module, report: Report) -> None:
    binary = {f"{name}.weight" for name, layer in binary_layers(model).items() if layer.rule.weights == "sign"}
    stays: dict[str, int] = {}
    for name, value in model.named_parameters():
        if name in binary:
            report.binary_weights += value.numel()
        else:
            place = _any_block(name)
            stays[place] = stays.get(place, 0) + value.numel()
    report.stays = list(stays.items())
