"""The small segmentation network of the embedded experiment: strides 1, 2, 4, 8 stand for 4, 8, 16, 32.

The method needs only the ratios: a window of HRCA is 8 x 8 fine cells, one coarse cell.
Shapes: B batch, C width of neck and decoder, S side of the picture.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from faseg.experiment.scenes import CLASSES
from faseg.experiment.settings import ARMS, FASEG, ExperimentConfig
from faseg.method.decoder import Decoder, LayerTrace, Masks
from paperkit.data.seeding import seed_generators

INITIAL = 1  # stream of random numbers
CHANNELS = (16, 24, 32, 48)
GROUPS = 8


class SceneNetwork(nn.Module):
    """Convolutions, a feature pyramid and the transformer decoder of an arm."""

    def __init__(self, arm: str, config: ExperimentConfig) -> None:
        super().__init__()
        width = config.width
        self.stages = nn.ModuleList(
            _stage(before, after, stride)
            for before, after, stride in zip((1, *CHANNELS[:-1]), CHANNELS, (1, 2, 2, 2), strict=True)
        )
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1), nn.GroupNorm(GROUPS, width)) for channels in CHANNELS[::-1]
        )
        self.pos_linear = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in CHANNELS)
        self.smooth = _convolution(width, width, 1)
        self.mask_features = nn.Conv2d(width, width, 1)
        query_pos, hrca = ARMS[arm]
        self.decoder = Decoder(
            len(CLASSES),
            width,
            num_queries=config.queries,
            nheads=4,
            dim_feedforward=4 * width,
            layers=config.layers,
            query_pos=query_pos,
            hrca=hrca,
            omega=config.omega,
        )

    def pyramid(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """(B, 1, S, S) -> features and key positions, four maps each, coarse to fine, and mask features (B, C, S, S).

        Key positions come from the projected features, before the pyramid adds to them.
        """
        maps = []
        for stage in self.stages:
            images = stage(images)
            maps.append(images)
        projected = [lateral(x) for lateral, x in zip(self.lateral, maps[::-1], strict=True)]
        positions = [convolution(x) for convolution, x in zip(self.pos_linear, projected, strict=True)]
        features = [projected[0]]
        for x in projected[1:]:
            features.append(x + F.interpolate(features[-1], size=x.shape[-2:], mode="nearest"))
        features[-1] = self.smooth(features[-1])
        return features, positions, self.mask_features(features[-1])

    def forward(self, images: Tensor, masks: Masks = "none", trace: list[LayerTrace] | None = None) -> dict[str, Any]:
        """(B, 1, S, S) -> the decoder's outputs, see there, and `mask_features` (B, C, S, S)."""
        features, positions, mask_features = self.pyramid(images)
        return {**self.decoder(features, positions, mask_features, masks, trace), "mask_features": mask_features}


def _convolution(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.GroupNorm(GROUPS, after), nn.ReLU(inplace=True)
    )


def _stage(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_convolution(before, after, stride), _convolution(after, after, 1))


def new_network(arm: str, seed: int, config: ExperimentConfig) -> SceneNetwork:
    """The network of an arm; initial weights are the seed's, and the same in all arms where arms share a module."""
    seed_generators(seed, INITIAL)
    whole = SceneNetwork(FASEG, config).state_dict()
    network = SceneNetwork(arm, config)
    # An arm of three levels has three level embeddings, the whole network four.
    network.load_state_dict({name: whole[name][: len(own)] for name, own in network.state_dict().items()})
    return network
