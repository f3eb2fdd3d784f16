"""Windows that share the first stages' map: exact but for a window's borders, where frames replace zeros."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from stpt.deployment import shared_overlap
from stpt.deployment.shared_overlap import drift, overlapping_maps, shared_part
from stpt.method.backbone import Backbone, PositionalConvolution
from stpt.models.networks import create_backbone

CLIP, LENGTH, SIDE = 64, 320, 32


def tiny(**changes: object) -> Backbone:
    """A small backbone whose positional convolutions do something; they begin as zeros."""
    torch.manual_seed(0)
    depths = {"depths": (1, 2, 1, 1), "dims": (8, 16, 32, 64), **changes}
    backbone = create_backbone("stpt_tiny", **depths)
    assert isinstance(backbone, Backbone)
    for module in backbone.modules():
        if isinstance(module, PositionalConvolution | nn.Linear):
            nn.init.normal_(module.weight, std=0.2)
    return backbone.eval()


@pytest.fixture(scope="module")
def video() -> Tensor:
    return torch.randn(1, 3, LENGTH, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def taken_from(video: Tensor) -> Callable[[int, int], Tensor]:
    return lambda low, high: video[:, :, low:high]


@torch.inference_mode()
@pytest.mark.parametrize("cpe", ["block", "stage"])
def test_pieces_give_what_the_whole_video_gives(video: Tensor, cpe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clip as long as the video meets the same zeros: then cutting the first stages' work changes nothing."""
    backbone = tiny(cpe=cpe)
    expected = backbone(video)
    (found,) = overlapping_maps(backbone, taken_from(video), LENGTH, [0], LENGTH, piece=48)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    short = shared_overlap.Shared(16, (2, 2), (0, 0))
    monkeypatch.setattr(shared_overlap, "shared_part", lambda _: short)
    (found,) = overlapping_maps(backbone, taken_from(video), LENGTH, [0], LENGTH, piece=48)
    assert max(drift(expected, found)) > 1e-4  # without the halo it does


@torch.inference_mode()
@pytest.mark.parametrize("piece", [1, 80, 1000])
@pytest.mark.parametrize("offsets", [[0, 32, 64, 240], [16, 32, 128], [128]])
def test_each_window_cuts_its_part_of_the_videos_map(video: Tensor, offsets: list[int], piece: int) -> None:
    backbone = tiny()
    cells = backbone.stages[1](backbone.stages[0](video))
    maps = list(overlapping_maps(backbone, taken_from(video), LENGTH, offsets, CLIP, piece))
    for offset, (third, fourth) in zip(offsets, maps, strict=True):
        expected = backbone.stages[2](cells[:, :, offset // 2 : (offset + CLIP) // 2])
        torch.testing.assert_close(third, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fourth, backbone.stages[3](expected), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_window_drifts_at_its_borders_only(video: Tensor) -> None:
    """Behind the halo the first stages' cells are those of the window alone; the maps that follow see all of it."""
    backbone = tiny(out_stages=(2, 3), kinds="LLLL")
    halo, clip = sum(shared_part(backbone).halos) // 2, 192
    alone, whole = (backbone.stages[1](backbone.stages[0](x)) for x in (video[:, :, 64 : 64 + clip], video))
    inner = whole[:, :, 32 : 32 + clip // 2] - alone
    assert inner[:, :, halo:-halo].abs().max() < 1e-5 < inner.abs().max()
    expected = backbone(video[:, :, 64 : 64 + clip])
    (found,) = overlapping_maps(backbone, taken_from(video), LENGTH, [64], clip, clip)
    assert all(0 < value < 1 for value in drift(expected, found)) and drift(expected, expected) == [0, 0]


def test_what_is_shared_follows_from_the_network() -> None:
    with torch.device("meta"):
        assert shared_part(create_backbone("stpt")) == shared_overlap.Shared(16, (2, 2), (16, 32))
        assert len(shared_part(create_backbone("stpt_ccgg")).strides) == 2
        assert shared_part(create_backbone("stpt", kinds="LGGG")).halos == (16,)
        for name in ("stpt_gggg", "stpt_ffff"):
            with pytest.raises(UserError, match="first stage of the network looks at the whole clip"):
                shared_part(create_backbone(name))
        with pytest.raises(UserError, match="learned embedding"):
            shared_part(create_backbone("stpt_abs"))


def test_refuses_windows_off_the_grid(video: Tensor) -> None:
    with pytest.raises(UserError, match="steps of 16; 40 is no multiple"):
        list(overlapping_maps(tiny(), taken_from(video), LENGTH, [0, 40], CLIP, 64))
