"""The MLP of a block with binary linears: fc1, activation, dropout, fc2, dropout.

fc2 sees sign(GELU(x)), which is sign(x) but for x below -5.5, where GELU rounds to -0 in float32.
"""

from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from bivit.method.binary_linear import RELEASED, RULES, BinaryLinear, LinearRule
from bivit.method.reactnet import RPReLU
from bivit.method.sign import Zero

Activation = Literal["gelu", "relu", "rprelu"]

RELEASED_MLPS: dict[str, LinearRule] = {
    "BiMlp": RELEASED["BinaryLinear_STE"],
    "BiMlp_1w32a": RELEASED["BinaryLinear_STE_32a"],
    "BiMlp_adapscaling_1w32a": RELEASED["BinaryLinear_adapscaling_1w32a"],
    "BiMlp_adapscaling": RELEASED["BinaryLinear_adapscaling"],
}
"""Rules of the released MLPs by their names; the last is what the paper describes, not in the released file."""


def activation_layer(name: str, hidden: int) -> nn.Module:
    """GELU (exact erf) as released, ReLU as in BiT, RPReLU as in ReActNet."""
    if name == "rprelu":
        return RPReLU(hidden)
    return nn.GELU() if name == "gelu" else nn.ReLU()


def second_rule(rule: LinearRule, activation: nn.Module) -> LinearRule:
    """fc2's rule: after ReLU, BiT's inputs are not signed."""
    unsigned = rule.inputs == "elastic" and isinstance(activation, nn.ReLU)
    return replace(rule, inputs="elastic_unsigned") if unsigned else rule


class BinaryMlp(nn.Module):
    """fc1 and fc2 under one rule.

    Args:
        dim, hidden: widths; out_dim: of the output, dim by default.
        linear: rule of both linears.
        activation: layer between them, or its name.
        zero: sign(0) of the inputs. drop: after the activation and after fc2.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        linear: LinearRule = RULES["pws"].float_inputs,
        activation: nn.Module | Activation = "gelu",
        *,
        out_dim: int | None = None,
        zero: Zero = "ternary",
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.act = activation_layer(activation, hidden) if isinstance(activation, str) else activation
        self.fc1 = BinaryLinear(dim, hidden, linear, zero)
        self.drop1 = nn.Dropout(drop)
        self.fc2 = BinaryLinear(hidden, out_dim or dim, second_rule(linear, self.act), zero)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., out_dim)."""
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))
