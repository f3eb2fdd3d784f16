"""Part B's data and network: does a layer carry information across the map?

Every 2x2 window of an 8 x 8 grid holds, in random order, {u, -u, u, -u} or {v, -v, v, -v} (kind 0, chosen per window)
or {u, -u, v, -v} (kind 1), u and v the first two unit vectors. One window of the upper half and one of the lower half
carry values s1, s2 = +-1 in the third channel of their tokens. The label is s1 == s2.

A network whose attention stays inside windows is a sum over windows followed by a linear map: the logits of (+, +),
(+, -), (-, -) are 2a, a + b, 2b but for a common term. No such classifier is right in more than 3 of 4 cases, and its
cross-entropy, convex and symmetric in (a, b), is driven to chance, ln 2. At that optimum all logits are equal, so what
is left of a - b after training decides the accuracy, anywhere from 25 to 75 %. Safe numbers are the cross-entropy and
the ranking of pairs: (+, -) lies between (+, +) and (-, -), so half of the pairs are ranked rightly, whatever a and b.

Shapes: B batch, H = W = 8 tokens, 6 channels.
"""

import torch
from torch import Tensor, nn

from litv2.method.hilo import HiLo
from litv2.method.mechanisms import MSA
from litv2.models.pyramid import Block

SIDE, CHANNELS, NOISE = 8, 6, 0.1


def sample_markers(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` grids (B, 8, 8, 6) and labels (B,), 1 where the markers agree."""
    half = SIDE // 2
    kind = torch.randint(2, (count, 1, 1), generator=generator)
    which = torch.randint(2, (count, half, half), generator=generator)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
    uniform = nn.functional.one_hot(which, CHANNELS)[..., None, :] * signs[:, None]
    mixed = nn.functional.one_hot(torch.tensor([0, 0, 1, 1]), CHANNELS) * signs[:, None]
    windows = torch.where((kind == 1)[..., None, None], mixed, uniform)
    order = torch.rand(count, half, half, 4, generator=generator).argsort(dim=-1)
    windows = windows.gather(3, order[..., None].expand(-1, -1, -1, -1, CHANNELS))
    values = 2 * torch.randint(2, (count, 2), generator=generator) - 1
    batch = torch.arange(count)
    for marker in range(2):
        row = torch.randint(half // 2, (count,), generator=generator) + marker * half // 2
        column = torch.randint(half, (count,), generator=generator)
        windows[batch, row, column, :, 2] = values[:, marker, None].float()
    grid = windows.view(count, half, half, 2, 2, CHANNELS).transpose(2, 3).reshape(count, SIDE, SIDE, CHANNELS)
    grid = grid + NOISE * torch.randn(grid.shape, generator=generator)
    return grid, (values[:, 0] == values[:, 1]).long()


class GridClassifier(nn.Module):
    """Stem, two pre-norm blocks, LayerNorm, mean, linear, in PyTorch's default initialisation.

    Args:
        stem: turns the input into a (B, H, W, 32) map.
        alpha: HiLo's share of Lo-Fi heads, or None for MSA.
        conv: depthwise convolutions in the feed-forward layers.
        classes: outputs.
    """

    WIDTH, HEADS, WINDOW, RATIO = 32, 4, 2, 2

    def __init__(self, stem: nn.Module, alpha: float | None, conv: bool, classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(
            Block(self.WIDTH, self.WIDTH * self.RATIO, self._attention(alpha), conv, drop=0.0, path=0.0)
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(self.WIDTH)
        self.head = nn.Linear(self.WIDTH, classes)

    def _attention(self, alpha: float | None) -> nn.Module:
        return MSA(self.WIDTH, self.HEADS) if alpha is None else HiLo(self.WIDTH, self.HEADS, self.WINDOW, alpha)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, classes)."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=(1, 2)))


def marker_network(alpha: float | None) -> GridClassifier:
    """Part B's network: plain MLPs, so that only attention moves information between tokens."""
    return GridClassifier(nn.Linear(CHANNELS, GridClassifier.WIDTH), alpha, conv=False, classes=2)
