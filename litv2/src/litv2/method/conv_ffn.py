"""ConvFFN: the feed-forward layer with a 3x3 depthwise convolution inside (LITv2, section 3.3).

The convolution's zero padding tells every token where the border is, so the network needs no position parameters.

Shapes: B batch, H x W tokens, D channels, R = int(D * ratio) hidden channels.
"""

from torch import Tensor, nn

from litv2.method.token_grid import on_grid


class DepthwiseConv(nn.Module):
    """3x3 depthwise convolution with bias on (B, H, W, R). The inner name doubles the key as the released files do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, R) -> (B, H, W, R). The permuted view is torch's channels-last layout: nothing is copied."""
        return self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvFFN(nn.Module):
    """`fc2(GELU(dwconv(fc1(x))))`: the convolution sits before the GELU and has no residual around it.

    Args:
        dim: D.
        hidden: R; the paper uses 4 D.
        conv: False leaves the convolution out (the plain MLP of LITv1).
        drop: dropout after the GELU and after fc2.
    """

    def __init__(self, dim: int, hidden: int, conv: bool = True, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv: nn.Module = DepthwiseConv(hidden) if conv else nn.Identity()
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, H: int | None = None, W: int | None = None) -> Tensor:
        """(B, H, W, D), or (B, N, D) with H * W = N -> the same shape."""
        return on_grid(self._grid, x, H, W)

    def _grid(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.dwconv(self.fc1(x))))))
