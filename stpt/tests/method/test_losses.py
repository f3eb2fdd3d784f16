"""The losses' options, targets at the borders, losses of frames, and precision; values are in the reference files."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stpt.method.decoding import decode
from stpt.method.losses import DetectionLoss, sampled
from stpt.method.targets import LEVEL_RANGES, match

CELLS = (8, 4)


def priors(levels: bool = False) -> Tensor:
    rows = [torch.stack([(torch.arange(t) + 0.5) / t, torch.full((t,), float(i))], 1) for i, t in enumerate(CELLS)]
    return torch.cat(rows)[:, : 1 + levels]


def outputs(batch: int = 2, frames: int = 64, levels: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    widths = dict(loc=2, conf=3, prop_loc=2, prop_conf=3, center=1)
    found = {name: torch.randn(batch, sum(CELLS), n, generator=generator) for name, n in widths.items()}
    found["loc"] = 10 * found["loc"].exp()
    found |= {side: torch.rand(batch, frames, 5, generator=generator) for side in ("start", "end")}
    for side in ("start", "end"):
        found |= {f"{side}_{b}_prop": torch.rand(batch, frames // 4, 6, generator=generator) for b in ("loc", "conf")}
    for value in found.values():
        value.requires_grad_()
    return found | {"priors": priors(levels)[None]}


TARGETS = [torch.tensor([[0.1, 0.6, 1.0], [0.2, 0.4, 2.0]]), torch.zeros(0, 3)]


def test_cells_learn_the_shortest_action_around_them() -> None:
    matched = match(priors(), TARGETS, 64)
    # Centres in frames: 4, 12, ... 60 and 8, 24, 40, 56; actions [6.4, 38.4] and, within it, [12.8, 25.6].
    assert matched.labels[0].tolist() == [0, 1, 2, 1, 1, 0, 0, 0, 1, 2, 0, 0]
    torch.testing.assert_close(matched.distances[0, 2], torch.tensor([7.2, 5.6]))
    assert not matched.labels[1].any() and not matched.distances[1].any()


def test_of_equally_long_actions_the_first_counts() -> None:
    both = torch.tensor([[0.25, 0.75, 2.0], [0.125, 0.625, 1.0]])
    assert match(priors(), [both], 64).labels[0, 3:5].tolist() == [2, 2]


def test_ranges_of_levels_leave_the_lower_bound_out() -> None:
    """The farther boundary is 30 frames off: level 0 takes (0, 30], level 2 does not take (30, 120]."""
    action = [torch.tensor([[0.5 - 30 / 256, 0.5 + 10 / 256, 1.0]])]
    cells = torch.tensor([[0.5, 0.0], [0.5, 1.0], [0.5, 2.0]])
    assert match(cells, action, 256, LEVEL_RANGES).labels[0].tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match="a prior of level 6; there are ranges for 6 levels"):
        match(torch.tensor([[0.5, 6.0]]), action, 256, LEVEL_RANGES)


def test_two_layouts_of_cells_in_one_process() -> None:
    """The reference keeps the ranges of the first layout for good."""
    loss, both = DetectionLoss("activitynet", 64), outputs(levels=True)
    first = loss(both, TARGETS)
    half = {name: value if name == "priors" else value[:, : CELLS[0]] for name, value in both.items()}
    loss({**half, "priors": priors(True)[None, : CELLS[0]]}, TARGETS)
    again = loss(both, TARGETS)
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("variant", ["thumos", "activitynet"])
def test_quality_target_may_be_held(variant: Any) -> None:
    """As released, the quality loss moves coarse and refined distances too."""
    for detach in (False, True):
        given = outputs(levels=variant == "activitynet")
        DetectionLoss(variant, 64, detach_quality_target=detach)(given, TARGETS)["loss_ct"].backward()
        assert (given["loc"].grad is None) == (given["prop_loc"].grad is None) == detach
        assert bool(given["center"].grad.any())


def test_batch_is_normalised_as_a_whole_or_clip_by_clip() -> None:
    """A clip without positive cells divides by 1 alone and by the batch's count beside another."""
    for variant, levels in (("thumos", False), ("activitynet", True)):
        given = outputs(levels=levels)
        clips = [{n: v if n == "priors" else v[b : b + 1] for n, v in given.items()} for b in range(2)]
        loss = DetectionLoss(variant, 64)  # type: ignore[arg-type]
        together = loss(given, TARGETS)["loss_c"]
        first, second = (loss(clip, [target])["loss_c"] for clip, target in zip(clips, TARGETS, strict=True))
        count = int((match(priors(), TARGETS, 64).labels > 0).sum())
        expected = (first + second) / 2 if levels else first + second / count
        torch.testing.assert_close(together, expected)


def test_losses_of_frames_against_a_sum() -> None:
    given, frames = outputs(1), 64
    masks = (torch.rand(2, 1, frames) > 0.7).to(torch.uint8)
    found = DetectionLoss("thumos", frames)(given, TARGETS[:1], *masks)
    for side, mask in zip(("start", "end"), masks[:, 0].tolist(), strict=True):
        total = 0.0
        for name, share, step in ((side, 1.0, 1), (f"{side}_loc_prop", 0.1, 4), (f"{side}_conf_prop", 0.1, 4)):
            means = given[name][0].tanh().mean(1).tolist()
            terms = [math.log(p if mask[step * t] else 1 - p) for t, p in enumerate(means)]
            total -= share * sum(terms) / len(terms)
        assert float(found[f"loss_{side}"]) == pytest.approx(total, rel=1e-5)


def test_masks_are_sampled_as_nearest_interpolation_does() -> None:
    mask = torch.rand(1, 2, 37)
    expected = torch.nn.functional.interpolate(mask, scale_factor=1 / 4)
    assert torch.equal(sampled(mask, 4, 37 // 4), expected)


def test_coarse_alone_and_weights() -> None:
    given = {name: value for name, value in outputs().items() if name in ("loc", "conf", "priors")}
    one = DetectionLoss("thumos", 64, weights=dict(loss_l=1, loss_c=1))(given, TARGETS)
    two = DetectionLoss("thumos", 64, weights=dict(loss_l=1, loss_c=2))(given, TARGETS)
    assert set(one) == {"loss_l", "loss_c"}
    torch.testing.assert_close(two["loss_c"], 2 * one["loss_c"])
    torch.testing.assert_close(DetectionLoss("thumos", 64)(given, TARGETS)["loss_l"], 10 * one["loss_l"])
    with pytest.raises(ValueError, match="weight of 'loss_x'; the losses are loss_l"):
        DetectionLoss("thumos", weights=dict(loss_x=1))
    with pytest.raises(ValueError, match="variant 'anet' is none of thumos, activitynet"):
        DetectionLoss("anet")  # type: ignore[arg-type]


def test_autocast_changes_no_loss() -> None:
    """Cross-entropy of probabilities has no half precision; under autocast all of it is float32."""
    given, masks = outputs(), torch.zeros(2, 2, 64)
    plain = DetectionLoss("thumos", 64)(given, TARGETS, *masks)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = DetectionLoss("thumos", 64)(given, TARGETS, *masks)
    assert all(torch.equal(plain[name], mixed[name]) for name in plain)
    rounded = {name: value if name == "priors" else value.bfloat16() for name, value in given.items()}
    assert DetectionLoss("thumos", 64)(rounded, TARGETS, *masks)["loss_l"].dtype == torch.float32


def test_decoding_of_one_cell() -> None:
    """p = 0.5 of 100 frames, (l, r) = (10, 30), moved by half of 40 times (0.1, -0.2); 21 frames would be outside."""
    given = dict(
        loc=torch.tensor([[[10.0, 30.0]]]), prop_loc=torch.tensor([[[0.1, -0.2]]]), priors=torch.tensor([[[0.5, 3.0]]]),
        conf=torch.tensor([[[0.0, math.log(3.0)]]]), prop_conf=torch.zeros(1, 1, 2), center=torch.zeros(1, 1, 1),
    )  # fmt: skip
    segments, scores = decode(given, 100)
    assert segments[0, 0].tolist() == pytest.approx([38.0, 76.0])
    assert scores[0, 0].tolist() == pytest.approx([0.5 * (0.25 + 0.5) * 0.5, 0.5 * (0.75 + 0.5) * 0.5])
    segments, scores = decode(given, 100, coarse=True)
    assert segments[0, 0].tolist() == [40.0, 80.0] and scores[0, 0].tolist() == pytest.approx([0.25, 0.75])
    assert decode({**given, "loc": torch.tensor([[[90.0, 90.0]]])}, 100)[0][0, 0].tolist() == [0.0, 100.0]
