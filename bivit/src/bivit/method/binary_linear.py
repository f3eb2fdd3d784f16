"""Linear layers with weights and inputs of one bit (section 3.1), and the learned scale of section 3.4 (PWS).

    y = signs(x) Wb^T + bias,   Wb = s * sign(Wc),   Wc = W - mean over inputs of W

The mean is part of the graph. s is one number per output channel: the mean of |W| (of W, not of Wc) without a gradient,
or a parameter that starts there (Parameterized Weight Scales). Baselines are other values of `LinearRule`.

Shapes: I inputs, O outputs.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bivit.method.elastic import Elastic
from bivit.method.reactnet import RSign
from bivit.method.sign import Gradient, Sign, Zero, sign
from paperkit.errors import UserError

Scale = Literal["parameter", "mean", "tensor"]
Inputs = Literal["sign", "float", "scaled", "threshold", "elastic", "elastic_unsigned"]


@dataclass(frozen=True)
class LinearRule:
    """What a binary linear does with its weights and inputs.

    Attributes:
        weights: "sign", or "float" (the first of the classical two steps).
        centre: the mean that is taken off before the sign: of a "row", of the whole "tensor" (BiT) or "none" (XNOR).
        scale: "parameter" [O, 1] (PWS), "mean" of |W| per row, or of the whole "tensor" (BiT); the last two without a
            gradient.
        weight_gradient: "ste" passes s times the gradient where |Wc| < 1; "clamp" (BiBERT) and "identity" (BiT) pass
            it without s, where |Wc| <= 1 or everywhere.
        inputs: "sign", "float", "scaled" (XNOR: times the mean of |x| of the token), "threshold" (RSign), "elastic"
            or "elastic_unsigned" (BiT, a shift first).
        input_gradient: of the sign of the inputs.
    """

    weights: Literal["sign", "float"] = "sign"
    centre: Literal["row", "tensor", "none"] = "row"
    scale: Scale = "mean"
    weight_gradient: Literal["ste", "clamp", "identity"] = "ste"
    inputs: Inputs = "sign"
    input_gradient: Gradient = "ste"

    @property
    def float_inputs(self) -> "LinearRule":
        """The same weights with float inputs (W1A32)."""
        return replace(self, inputs="float")

    @property
    def float_weights(self) -> "LinearRule":
        """The same inputs with float weights (W32A1)."""
        return replace(self, weights="float")


RULES: dict[str, LinearRule] = {
    "pws": LinearRule(scale="parameter"),
    "mean": LinearRule(),
    "xnor": LinearRule(centre="none", inputs="scaled"),
    "bireal": LinearRule(centre="none", input_gradient="bireal"),
    "reactnet": LinearRule(centre="none", inputs="threshold", input_gradient="bireal"),
    "bibert": LinearRule(weight_gradient="clamp", input_gradient="clamp"),
    "bit": LinearRule(centre="tensor", scale="tensor", weight_gradient="identity", inputs="elastic"),
    "bit_channels": LinearRule(inputs="elastic"),
}
"""Rules by name: the paper's two, and the baselines'. "bit_channels" has BiT's inputs and the paper's mean scale."""

RELEASED: dict[str, LinearRule] = {
    "BinaryLinear_STE": RULES["mean"],
    "BinaryLinear_STE_32a": RULES["mean"].float_inputs,
    "BinaryLinear_adapscaling": RULES["pws"],
    "BinaryLinear_adapscaling_1w32a": RULES["pws"].float_inputs,
    "BinaryLinear_32w1a": LinearRule(weights="float"),
}
"""The five classes of the released code by their names."""


def rule_of(name: str) -> LinearRule:
    """The rule of that name, of `RULES` or `RELEASED`.

    Raises:
        UserError: no such rule.
    """
    known = RULES | RELEASED
    if name not in known:
        raise UserError(f"linear rule '{name}' does not exist; known: {', '.join(RULES)}")
    return known[name]


def mean_scale(weight: Tensor) -> Tensor:
    """Mean of |W| over the inputs: (O, I) -> (O, 1)."""
    return weight.detach().abs().mean(1, keepdim=True)


class ScaledSign(Sign):
    """XNOR-Net's inputs: signs times the mean of |x| of the token (from memory); that mean has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., I)."""
        return super().forward(x) * x.detach().abs().mean(-1, keepdim=True)


def input_layer(rule: LinearRule, width: int, zero: Zero) -> nn.Module:
    """What stands before the product: a layer (..., width) -> (..., width)."""
    if rule.inputs == "float":
        return nn.Identity()
    if rule.inputs == "threshold":
        return RSign(width, rule.input_gradient, zero)
    if rule.inputs in ("elastic", "elastic_unsigned"):
        return Elastic(signed=rule.inputs == "elastic", shift=width)
    return (ScaledSign if rule.inputs == "scaled" else Sign)(rule.input_gradient, zero)


class BinaryLinear(nn.Linear):
    """A linear layer under a `LinearRule`. It always has a bias, as the released classes do.

    Args:
        in_features, out_features: I and O.
        rule: of weights and inputs.
        zero: sign(0) of the inputs; weights keep sign(0) = 0, so that a constant row gives its bias alone.

    A scale of zeros (a file without scales) is set from the weights by the first forward pass, as in the released code;
    `start_scale` does the same when weights are loaded.

    Raises:
        UserError: widths below 1.

    Example:
        >>> BinaryLinear(384, 1152, RULES["pws"])(torch.randn(2, 197, 384)).shape
        torch.Size([2, 197, 1152])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rule: LinearRule = RULES["pws"],
        zero: Zero = "ternary",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if in_features < 1 or out_features < 1:
            raise UserError(
                f"a binary linear of {in_features} inputs and {out_features} outputs; both must be at least 1"
            )
        super().__init__(in_features, out_features, True, device, dtype)
        self.rule, self.zero = rule, zero
        self.scaling_factor: nn.Parameter | None = None
        if rule.weights == "sign" and rule.scale == "parameter":
            self.scaling_factor = nn.Parameter(torch.zeros(out_features, 1, device=device, dtype=dtype))
        self.binarize_input = input_layer(rule, in_features, zero).to(device=device, dtype=dtype)
        self.scale_checked = self.scaling_factor is None
        if rule.weights == "float" or rule.scale == "parameter":
            nn.init.uniform_(self.weight, -0.015, 0.015)

    def start_scale(self) -> None:
        """Sets a learned scale to the mean of |W|, in place, so that an optimiser keeps it."""
        if self.scaling_factor is not None:
            self.scale_checked = True
            with torch.no_grad():
                self.scaling_factor.copy_(mean_scale(self.weight))

    def centred_weight(self) -> Tensor:
        """(O, I): what the sign is taken of."""
        if self.rule.centre == "none":
            return self.weight
        if self.rule.centre == "tensor":
            return self.weight - self.weight.mean()
        return self.weight - self.weight.mean(1, keepdim=True)

    def scale(self) -> Tensor:
        """(O, 1): s of every output channel."""
        if self.scaling_factor is not None:
            return self.scaling_factor
        if self.rule.scale == "tensor":
            return self.weight.detach().abs().mean().expand(self.out_features, 1)
        return mean_scale(self.weight)

    def binary_weight(self) -> Tensor:
        """(O, I): `s * sign(Wc)`, or the weights themselves."""
        if self.rule.weights == "float":
            return self.weight
        centred, gradient = self.centred_weight(), self.rule.weight_gradient
        if gradient == "ste":
            return self.scale() * sign(centred)
        passed = centred.clamp(-1, 1) if gradient == "clamp" else centred
        return (self.scale() * centred.sign()).detach() + (passed - passed.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        if not self.scale_checked and not torch.compiler.is_compiling():
            self._check_scale()
        x, rule = self.binarize_input(x), self.rule
        if rule.weights == "sign" and rule.weight_gradient == "ste" and rule.inputs in ("sign", "threshold"):
            # Signs first and the scale behind: a whole number, so that a sum of 0 is 0 in any order and on bits.
            dot = F.linear(x, sign(self.centred_weight()))
            return torch.addcmul(self.bias, dot, self.scale().flatten()).to(dot.dtype)
        return F.linear(x, self.binary_weight(), self.bias)

    def _check_scale(self) -> None:
        factor = self.scaling_factor
        if factor is not None and not factor.is_meta:
            self.scale_checked = True
            if factor.sum() == 0:
                self.start_scale()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.scale_checked = self.scaling_factor is None

    def extra_repr(self) -> str:
        r = self.rule
        bits = f"W{1 if r.weights == 'sign' else 32}A{32 if r.inputs == 'float' else 1}"
        return f"{self.in_features}, {self.out_features}, {bits}, scale={r.scale}, inputs={r.inputs}, zero={self.zero}"


def binary_linear_of(old: nn.Linear, rule: LinearRule, zero: Zero = "ternary") -> BinaryLinear:
    """A binary linear around the parameters of another, which stay the same objects; a missing bias becomes zeros.

    A learned scale is kept where there is one, else it starts from the weights. So is what was learned of the inputs.
    """
    weight = old.weight
    with torch.device("meta"):
        new = BinaryLinear(old.in_features, old.out_features, rule, zero, dtype=weight.dtype)
    new.weight = weight
    new.bias = old.bias if old.bias is not None else nn.Parameter(weight.new_zeros(old.out_features))
    kept = old if isinstance(old, BinaryLinear) else None
    if kept is not None and (kept.rule.inputs, kept.zero) == (rule.inputs, zero):
        new.binarize_input = kept.binarize_input
    else:
        new.binarize_input = input_layer(rule, old.in_features, zero).to(device=weight.device, dtype=weight.dtype)
    if new.scaling_factor is not None:
        if kept is not None and kept.scaling_factor is not None:
            new.scaling_factor, new.scale_checked = kept.scaling_factor, kept.scale_checked
        else:
            new.scaling_factor = nn.Parameter(weight.new_zeros(old.out_features, 1))
            new.start_scale()
    return new.train(old.training)
