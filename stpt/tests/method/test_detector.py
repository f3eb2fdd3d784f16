"""The detector where no reference file looks: whole sizes, the norm that does not leak, odd lengths, precision."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stpt.method.detector import Detector
from stpt.method.heads import frame_windows, level_windows

SMALL: dict[str, Any] = dict(
    in_channels=(6, 10), map_sizes=((2, 2), (1, 1)), num_classes=3, frames=64, levels=3, channels=8, groups=4
)


def small(seed: int = 0, **changes: Any) -> Detector:
    """A head with random norms and scales too: started ones hide mistakes."""
    torch.manual_seed(seed)
    detector = Detector(**{**SMALL, **changes})
    for parameter in detector.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return detector


def maps(batch: int = 2, cells: int = 16) -> list[Tensor]:
    return [torch.randn(batch, 6, cells, 2, 2), torch.randn(batch, 10, -(-cells // 2), 1, 1)]


@pytest.mark.parametrize(("in_channels", "millions"), [((384, 768), 23.02), ((832, 1024), 32.46)], ids=["stpt", "i3d"])
def test_parameters(in_channels: tuple[int, int], millions: float) -> None:
    """Section 3: 23.0 M on STPT's maps; section 7: 32.46 M on I3D's."""
    with torch.device("meta"):
        detector = Detector(in_channels)
    assert round(sum(p.numel() for p in detector.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(("variant", "frames", "cells"), [("thumos", 256, 126), ("activitynet", 768, 189)])
def test_whole_size(variant: Any, frames: int, cells: int) -> None:
    """Shapes at full size, and the keys by which AFSD's ActivityNet files differ."""
    with torch.device("meta"):
        detector = Detector(frames=frames, variant=variant, num_classes=21 if variant == "thumos" else 2)
        out = detector([torch.empty(1, 384, frames // 4, 6, 6), torch.empty(1, 768, frames // 8, 3, 3)])
    assert out["loc"].shape == (1, cells, 2) and out["center"].shape == (1, cells, 1)
    assert out["priors"].shape == (1, cells, 1 if variant == "thumos" else 2)
    assert out["start"].shape == (1, frames, 256)
    assert out["end_conf_prop"].shape == (1, frames // (4 if variant == "thumos" else 8), 512)
    keys = detector.state_dict()
    assert ("pyramids.1.0.conv3d.weight" in keys) == (variant == "thumos")
    assert "loc_heads.5.scale" in keys and "deconv.6.conv1d.weight" in keys and not any("priors" in key for key in keys)


def test_starts_as_afsd() -> None:
    torch.manual_seed(0)
    thumos, anet = (
        Detector(channels=64, variant=variant).requires_grad_(False) for variant in ("thumos", "activitynet")
    )
    weight = thumos.loc_tower[0][0].conv1d.weight
    bound = (3 / ((64 * 3 + 64 * 3) / 2)) ** 0.5
    assert 0.99 * bound < float(weight.abs().max()) <= bound
    assert float(anet.loc_tower[0][0].conv1d.weight.std()) == pytest.approx(0.01, rel=0.05)
    assert float(anet.conf_proposal_branch.lr_conv[0].conv1d.weight.std()) == pytest.approx(0.01, rel=0.05)
    assert float(anet.deconv[0].conv1d.weight.abs().max()) == pytest.approx(bound, rel=0.01)
    assert all(not p.any() for name, p in anet.named_parameters() if name.endswith("conv1d.bias"))


def test_only_group_norm_tells_cells_of_the_whole_clip() -> None:
    """A change of the first frames moves late cells under GroupNorm, and not at all under LayerNorm over channels."""
    for norm, leaks in (("ln", False), ("gn", True)):
        detector = small(head_norm=norm, refine=False)
        given = maps(1, 64)
        changed = [x.clone() for x in given]
        for x in changed:
            x[:, :, :2] += 1
        with torch.no_grad():
            moved = (detector(changed)["conf"] - detector(given)["conf"])[0].abs().amax(1)
        assert bool(moved[:4].all())
        assert bool(moved[40:64].any()) == leaks


@pytest.mark.parametrize("cells", [13, 16, 1])
def test_any_length_has_its_priors(cells: int) -> None:
    """AFSD halves lengths downwards for priors and upwards in convolutions: odd ones disagree there."""
    detector = small()
    out = detector(maps(2, cells))
    lengths = [cells, (cells + 1) // 2, (cells + 3) // 4]
    expected = torch.cat([(torch.arange(t) + 0.5) / t for t in lengths])
    torch.testing.assert_close(out["priors"][0, :, 0], expected)
    assert out["loc"].shape == (2, sum(lengths), 2)


def test_coarse_heads_alone_give_the_same() -> None:
    whole, coarse = small(), small(refine=False)
    coarse.load_state_dict(whole.state_dict(), strict=False)
    given = maps()
    out, alone = whole(given), coarse(given)
    assert set(alone) == {"loc", "conf", "priors"}
    for name, value in alone.items():
        assert torch.equal(value, out[name])
    assert {name.split(".")[0] for name in set(whole.state_dict()) - set(coarse.state_dict())} == {
        *("loc_proposal_branch", "conf_proposal_branch", "prop_loc_head", "prop_conf_head", "center_head", "deconv")
    }


def test_consistency_of_a_batch_is_that_of_its_clips() -> None:
    detector, given = small(), maps()
    segments = torch.tensor([[[3.0, 20], [28, 50], [21, 27]], [[10, 31], [36, 60], [32, 35]]])
    together = detector.consistency(given, segments)
    for clip in range(2):
        alone = detector.consistency([x[clip : clip + 1] for x in given], segments[clip : clip + 1])
        for parts, of_clip in zip(together, alone, strict=True):
            for part, one in zip(parts, of_clip, strict=True):
                torch.testing.assert_close(part[clip : clip + 1], one)
    assert [part.shape for part in together[0]] == [(2, 4), (2, 8), (2, 8)]


def test_windows_by_hand() -> None:
    """Of 8 frames and 4 cells: cell 1 with distances (2, 6) has d = (1, 3), length 4, inner 1, outer 1."""
    loc = torch.zeros(1, 4, 2)
    loc[0, 1] = torch.tensor([2.0, 6.0])
    assert level_windows(loc, 8)[0, 1].tolist() == [-1, 1, 3, 5]
    # Length 41 with both ends: inner 10.25, outer 4.1; a half is rounded to the even side.
    assert frame_windows(torch.tensor([[[10.0, 50.0], [0.5, 1.5]]]))[0].tolist() == [[6, 20, 40, 54], [0, 2, 0, 2]]


def test_distances_and_windows_stay_in_float32_under_autocast() -> None:
    detector, given = small(), maps()
    with torch.autocast("cpu", torch.bfloat16):
        out = detector(given)
    assert out["loc"].dtype == out["priors"].dtype == torch.float32
    torch.testing.assert_close(out["loc"], detector(given)["loc"], rtol=0.2, atol=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(variant="charades"), "variant 'charades' is none of thumos, activitynet"),
        (dict(head_norm="bn"), "head_norm 'bn' is none of gn, ln"),
        (dict(channels=9), "9 channels have no halves"),
        (dict(groups=3), "8 channels are not a multiple of 3 groups"),
        (dict(levels=1), "1 levels for 2 maps"),
        (dict(strides=(1, 2)), "2 strides for 3 levels"),
        (dict(num_classes=1), "num_classes 1 must be a whole number from 2 on"),
        (dict(frames=2.5), "frames 2.5 must be a whole number from 1 on"),
        (dict(groups=0), "groups 0 must be a whole number from 1 on"),
        (dict(consistency_scales=(1, 0, 4)), r"consistency_scales \(1, 0, 4\) must be three numbers above 0"),
    ],
)
def test_impossible_options(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Detector(**{**SMALL, **change})


def test_maps_of_another_size_are_named() -> None:
    with pytest.raises(ValueError, match=r"a map of \(3, 2\) cells in space; this head takes \(2, 2\)"):
        small()([torch.randn(1, 6, 8, 3, 2), torch.randn(1, 10, 4, 1, 1)])
