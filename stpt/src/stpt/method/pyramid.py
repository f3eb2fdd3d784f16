"""The temporal feature pyramid on the backbone's last maps (AFSD, 3.1), and what normalises its features.

Shapes: B clips, C channels, t_l cells of level l; H, W cells of a map in space.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from stpt.method.convolutions import Unit1D, Unit3D

HeadNorm = Literal["gn", "ln"]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over channels, each cell by itself.

    GroupNorm's statistics run over the clip, and so tell every cell of all others.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def norm_relu(unit: nn.Module, channels: int, norm: HeadNorm = "gn", groups: int = 32) -> nn.Sequential:
    """A convolution to `channels`, its norm and ReLU: the brick that everything below is built of.

    Raises:
        ValueError: groups that do not divide the channels.
    """
    if norm == "gn" and channels % groups:
        raise ValueError(f"{channels} channels are not a multiple of {groups} groups")
    layer = nn.GroupNorm(groups, channels) if norm == "gn" else ChannelNorm(channels)
    return nn.Sequential(unit, layer, nn.ReLU())


class Pyramid(nn.ModuleList):
    """Maps squeezed in space, then levels of half the length each; of two maps, the first takes up the second.

    Args:
        in_channels: of the maps, one (ActivityNet) or two (THUMOS14).
        map_sizes: (H, W) of each map: the kernel that squeezes it.
        levels: of the pyramid, at least as many as maps.
        channels: C.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        map_sizes: Sequence[tuple[int, int]],
        levels: int,
        channels: int,
        norm: HeadNorm = "gn",
        groups: int = 32,
    ) -> None:
        self.maps, self.map_sizes = len(in_channels), [tuple(size) for size in map_sizes]
        if not 1 <= self.maps <= levels:
            raise ValueError(f"{levels} levels for {self.maps} maps; there is at least one for each")
        squeezes = [
            Unit3D(width, channels, (1, *size), spatial_valid=True, norm=False)
            for width, size in zip(in_channels, map_sizes, strict=True)
        ]
        halvings = [Unit1D(channels, channels, 3, stride=2) for _ in range(levels - self.maps)]
        super().__init__(norm_relu(unit, channels, norm, groups) for unit in (*squeezes, *halvings))

    def forward(self, maps: Sequence[Tensor], levels: int | None = None) -> list[Tensor]:
        """Maps (B, C', T', H, W) -> features (B, C, t_l) of the first `levels` levels (all of them).

        Raises:
            ValueError: maps of another size in space.
        """
        features: list[Tensor] = []
        for place, brick in enumerate(self):
            if place < self.maps:
                size = tuple(maps[place].shape[3:])
                if size != self.map_sizes[place]:
                    raise ValueError(f"a map of {size} cells in space; this head takes {self.map_sizes[place]}")
                features.append(brick(maps[place]).flatten(2))
            elif levels is None or place < levels:
                features.append(brick(features[-1]))
        # The levels above come from the second map as it is; the first level alone gets it added.
        if self.maps == 2:
            features[0] = features[0] + F.interpolate(features[1], features[0].shape[2:], mode="nearest")
        return features[:levels]
