"""Whole backbones that are raced: STPT's patterns of local and global attention, and I3D on RGB and optical flow.

Shapes: B clips, 3 channels, T frames, H height, W width.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from stpt.deployment.precision import FLOAT32, inference_in
from stpt.deployment.shared_overlap import drift, overlapping_maps
from stpt.method.backbone import Backbone, PositionalConvolution
from stpt.models.networks import create_backbone

LLGG, LLLL, GGGG, I3D = "LLGG", "LLLL", "GGGG", "I3D, RGB and flow"
NAMES = {LLGG: "stpt", LLLL: "stpt_llll", GGGG: "stpt_gggg"}
SHAPE, SMALL = (1, 256, 96, 96), (1, 128, 32, 32)
"""Clips, frames, height, width: of the recipes, and of a quick bench."""
KEPT, AGAIN = "activations kept", "activations computed again"
ALONE, SHARED = "each window alone", "first stages shared"

Steps = dict[str, Callable[[], object]]


class TwoStreams(nn.Module):
    """AFSD's two backbones: one on RGB, one on the two channels of optical flow."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.flow = create_backbone("i3d"), create_backbone("i3d", in_channels=2)

    def forward(self, clip: Tensor) -> list[Tensor]:
        """(B, 3, T, H, W), whose first two channels stand for the flow, which is not computed here."""
        clip = clip.contiguous(memory_format=torch.channels_last_3d)
        return [*self.rgb(clip), *self.flow(clip[:, :2])]


def two_streams() -> nn.Module:
    """I3D in memory channels-last: 1.2 times as fast here as it comes, twice in bfloat16 (measured on a CPU)."""
    return TwoStreams().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def network(name: str, **changes: object) -> nn.Module:
    """A backbone in eval mode with made weights, positional convolutions included; they begin as zeros otherwise."""
    torch.manual_seed(0)
    built = two_streams() if name == I3D else create_backbone(NAMES[name], **changes)
    for module in built.modules():
        if isinstance(module, PositionalConvolution):
            nn.init.normal_(module.weight, std=0.1)
    return built.eval()


def clip_of(shape: Sequence[int]) -> Tensor:
    """A made clip (B, 3, T, H, W)."""
    clips, *sides = shape
    return torch.rand(clips, 3, *sides, generator=torch.Generator().manual_seed(0)) * 2 - 1


def clip_steps(names: Sequence[str], shape: Sequence[int], precision: str) -> Steps:
    """One forward pass of each backbone."""
    clip = clip_of(shape)
    return {name: partial(infer, network(name), clip, precision) for name in names}


def infer(model: nn.Module, clip: Tensor, precision: str = FLOAT32) -> list[Tensor]:
    """The maps of a clip."""
    with inference_in(precision):
        return model(clip)


def training_steps(shape: Sequence[int]) -> Steps:
    """Forward and backward passes, activations kept first, then computed again."""
    return {name: partial(train, training_network(name), clip_of(shape)) for name in (KEPT, AGAIN)}


def training_network(name: str) -> nn.Module:
    """LLGG in training mode, without dropped paths, so that both forms compute the same."""
    return network(LLGG, checkpoint=name == AGAIN, drop_path=0.0).train()


def train(model: nn.Module, clip: Tensor) -> list[Tensor]:
    """One forward and one backward pass; the first stage's gradients."""
    model.zero_grad(set_to_none=True)
    torch.stack([found.square().mean() for found in model(clip)]).sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None][:4]


def overlap_steps(frames: int, shape: Sequence[int]) -> tuple[Steps, Callable[[], list[float]]]:
    """A video in windows that overlap by half: each alone, or the first stages run once a frame; and the drift.

    The drift is that of the second window, for each map of the backbone. The made video is a noise that moves slowly.
    """
    model, (_, clip, height, width) = network(LLGG), shape
    assert isinstance(model, Backbone)
    coarse = clip_of((1, frames // 8, height // 8, width // 8))
    video = nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")
    offsets = range(0, frames - clip + 1, clip // 2)

    def taken(low: int, high: int) -> Tensor:
        return video[:, :, low:high]

    def alone() -> Iterator[list[Tensor]]:
        for offset in offsets:
            yield model(taken(offset, offset + clip))

    def shared() -> Iterator[list[Tensor]]:
        return overlapping_maps(model, taken, frames, offsets, clip, piece=clip)

    def run(form: Callable[[], Iterator[list[Tensor]]]) -> int:
        with torch.inference_mode():
            return sum(1 for _ in form())

    def drifted() -> list[float]:
        with torch.inference_mode():
            expected = model(taken(offsets[1], offsets[1] + clip))
            maps = shared()
            next(maps)
            return drift(expected, next(maps))

    return {SHARED: partial(run, shared), ALONE: partial(run, alone)}, drifted
