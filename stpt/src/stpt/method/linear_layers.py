"""Linear layers that compute by oneDNN where that is the faster library: float32 on a CPU, without gradients.

Torch gives float32 products to MKL, which is slow on AMD's processors; oneDNN took 0.36 to 0.88 of its time on the
backbone's shapes (one thread of a Zen 5). Results agree to rounding. The operator is the one that torch's own
compiler puts in place of a linear layer; training, compiling, exporting and lower precisions take torch's usual way.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether a layer's product is left to oneDNN."""
    return (
        _HAS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch.get_float32_matmul_precision() == "highest"
    )


class Linear(nn.Linear):
    """As torch's. (..., C) -> (..., O)."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., O)."""
        if by_onednn(x, self.weight):
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return super().forward(x)


class FeedForward(nn.Module):
    """Linear layer, exact GELU, linear layer.

    Args:
        dim: C. hidden: channels between the two.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(dim, hidden), Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> the same."""
        fc1 = self.fc1
        if by_onednn(x, fc1.weight):
            return self.fc2(torch.ops.mkldnn._linear_pointwise(x, fc1.weight, fc1.bias, "gelu", [], "none"))
        return self.fc2(F.gelu(fc1(x)))
