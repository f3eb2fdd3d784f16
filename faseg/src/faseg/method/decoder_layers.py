"""The three blocks of a decoder layer, post-norm, under the released names (Mask2Former's blocks).

Shapes: B batch, Q queries, N keys, C channels. Batch first.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from faseg.method.attention import Attended, Attention


class CrossAttention(nn.Module):
    """LN(x + attention(x + its position, key, value)); gives focus and map too, see `Attended`."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = Attention(channels, heads)
        self.norm = nn.LayerNorm(channels)

    def forward(
        self,
        x: Tensor,
        query_pos: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        want_map: bool = False,
    ) -> Attended:
        """(B, Q, C), (B, Q, C), (B, N, C), (B, N, C) -> (B, Q, C).

        Args:
            key: with the positions of the keys added. mask, positions, want_map: of `attention.attend`.
        """
        attended = self.multihead_attn(x + query_pos, key, value, mask, positions, want_map)
        return attended._replace(values=self.norm(x + attended.values))


class SelfAttention(nn.Module):
    """LN(x + attention(x + its position, x + its position, x)): (B, Q, C), (B, Q, C) -> (B, Q, C)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(channels, heads)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, query_pos: Tensor) -> Tensor:
        placed = x + query_pos
        return self.norm(x + self.self_attn(placed, placed, x).values)


class FeedForward(nn.Module):
    """LN(x + W2 relu(W1 x)): (B, Q, C) -> (B, Q, C)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.norm = nn.LayerNorm(channels)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.linear2(F.relu(self.linear1(x))))
