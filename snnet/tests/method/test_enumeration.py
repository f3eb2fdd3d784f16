"""Windows, unpaired stretching and numbering, against worked examples."""

import pytest

from snnet.method.enumeration import (
    Configuration,
    paired,
    paired_forward,
    plain_configurations,
    staged_configurations,
    unpaired,
)


def test_sliding_window_of_deit() -> None:
    found = paired(12)
    assert (len(found.cuts), found.num_layers) == (34, 11)
    assert found.cuts[:7] == ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2))
    assert found.layer_of[:7] == (0, 0, 0, 0, 1, 1, 1)
    assert found.cuts[-3:] == ((10, 11), (11, 10), (11, 11)) and found.layer_of[-1] == 10


@pytest.mark.parametrize(("depth", "window", "stride"), [(1, 2, 1), (4, 1, 1), (5, 3, 2), (6, 9, 4), (7, 2, 3)])
def test_every_pair_of_a_window_once(depth: int, window: int, stride: int) -> None:
    found = paired(depth, window, stride)
    starts = range(0, depth, stride)
    expected = {
        (p, q) for s in starts for p in range(s, min(s + window, depth)) for q in range(s, min(s + window, depth))
    }
    assert set(found.cuts) == expected and len(found.cuts) == len(expected)
    assert sorted(set(found.layer_of)) == list(range(found.num_layers))


def test_equal_depth_of_a_stage_goes_forward_only() -> None:
    found = paired_forward(4)
    assert found.cuts == ((0, 1), (1, 2), (2, 3)) and found.layer_of == (0, 1, 2)


@pytest.mark.parametrize(
    ("front", "end", "cuts", "released", "aligned"),
    [
        (2, 4, ((0, 1), (1, 2), (1, 3)), (0, 0, 1), (0, 1, 1)),
        (2, 6, ((0, 1), (0, 2), (1, 3), (1, 4), (1, 5)), (0, 0, 0, 1, 1), (0, 0, 1, 1, 1)),
    ],
)
def test_unpaired(
    front: int, end: int, cuts: tuple[tuple[int, int], ...], released: tuple[int, ...], aligned: tuple[int, ...]
) -> None:
    assert (unpaired(front, end).cuts, unpaired(front, end).layer_of) == (cuts, released)
    assert unpaired(front, end, "aligned").layer_of == aligned


def test_six_to_eighteen_is_shifted_by_one() -> None:
    found = unpaired(6, 18)
    assert len(found.cuts) == 17 and found.num_layers == 6
    assert found.cuts[:6] == ((0, 1), (0, 2), (1, 3), (1, 4), (1, 5), (2, 6))
    assert found.layer_of[:9] == (0, 0, 0, 1, 1, 1, 2, 2, 2)


def test_numbers_of_released_configurations() -> None:
    deit = plain_configurations(3, {(0, 1): paired(12), (1, 2): paired(12)}, nearest=True)
    assert len(deit) == 71 and [c.anchors for c in deit[:4]] == [(0,), (1,), (2,), (0, 1)]
    counts = {
        "swin": ([(2, 2, 6, 2), (2, 2, 18, 2), (2, 2, 18, 2)], (0, 1, 2)),
        "levit": ([(4, 4, 4)] * 2, (0, 1)),
        "resnet": ([(2, 2, 2, 2), (3, 4, 6, 3)], (1, 2)),
        "resnet to swin": ([(2, 2, 2, 2), (2, 2, 6, 2)], (1, 2)),
    }
    found = {name: len(staged_configurations(depths, stages)[0]) for name, (depths, stages) in counts.items()}
    assert found == {"swin": 41, "levit": 8, "resnet": 10, "resnet to swin": 8}


@pytest.mark.parametrize(("anchors", "count"), [(1, 1), (2, 2 + 7), (3, 3 + 14), (4, 4 + 21)])
def test_nearest_stitching_for_any_number_of_anchors(anchors: int, count: int) -> None:
    """The released code fails for two anchors and keeps unwanted pairs for four."""
    every = {(i, j): paired(3) for i in range(anchors) for j in range(i + 1, anchors)}
    listed = plain_configurations(anchors, every, nearest=True)
    assert len(listed) == count
    assert all(c.anchors[-1] - c.anchors[0] == len(c.cuts) <= 1 for c in listed)


def test_chains_run_every_middle_block_forward() -> None:
    every = {pair: paired(3) for pair in ((0, 1), (0, 2), (1, 2))}
    chains = [c for c in plain_configurations(3, every, nearest=False) if len(c.cuts) == 2]
    assert chains and all(second[0] >= first[1] for first, second in (c.cuts for c in chains))


def test_description_names_blocks() -> None:
    stitch = Configuration((0, 1), ((2, 3),), (2,), stage=1)
    assert stitch.describe(["small", "large"]) == "stage 1: small 0-2 > large 3-"
