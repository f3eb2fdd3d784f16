"""Cross-covariance attention (XCiT): softmax over channels instead of tokens, linear in N.

Shapes: B batch, N tokens, D channels, n heads, d = D / n.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossCovarianceAttention(nn.Module):
    """Per head a (d x d) attention of channels; q and k are normalised over the tokens, a temperature is learned."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, H: int | None = None, W: int | None = None) -> Tensor:
        """(B, N, D) or (B, H, W, D) -> the same shape."""
        qkv = self.qkv(x.flatten(1, -2)).unflatten(-1, (3, self.num_heads, -1))
        q_bndt, k_bndt, v_bndt = qkv.permute(2, 0, 3, 4, 1).unbind(0)
        q, k = F.normalize(q_bndt, dim=-1), F.normalize(k_bndt, dim=-1)
        shares = (q @ k.transpose(-1, -2) * self.temperature).softmax(dim=-1)
        out = (shares @ v_bndt).permute(0, 3, 1, 2).flatten(2)
        return self.proj(out).view_as(x)
