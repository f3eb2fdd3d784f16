"""The splice: the pictures that it moves, the segments that it names, and what it may choose."""

import numpy as np
import pytest

from paperkit.errors import UserError
from stpt.method.splice import Splice, background_blocks, block_length, choose_splice

ACTIONS = np.array([[20.3, 50.6, 1], [70.0, 74.0, 2]])


def test_block_from_behind() -> None:
    splice = Splice((10.0, 20.0), 3, 15, 25)
    frames = splice.frame_map(30)
    assert frames.tolist() == [*range(15), 25, 26, 27, *range(15, 25), 28, 29]
    assert splice.segments().tolist() == [[10, 15], [18, 23], [16, 17]]


def test_block_from_before() -> None:
    splice = Splice((10.0, 20.0), 3, 15, 2)
    frames = splice.frame_map(30)
    assert frames.tolist() == [0, 1, *range(5, 15), 2, 3, 4, *range(15, 30)]
    assert splice.segments().tolist() == [[7, 12], [15, 20], [13, 14]]


def test_parts_show_the_action_and_the_block_shows_background() -> None:
    """Whatever is drawn: every frame stays, the parts hold the action alone, the middle holds nothing of any action."""
    sides = set()
    for seed in range(60):
        splice = choose_splice(ACTIONS, 90, 4, np.random.default_rng(seed))
        assert splice is not None and splice.action == (20.3, 50.6)
        frames, (first, second, middle) = splice.frame_map(90), splice.segments()
        sides.add(splice.after)
        assert sorted(frames) == list(range(90))
        assert splice.cut - splice.action[0] >= 4 and splice.action[1] - splice.cut >= 4
        for start, end in (first, second):
            shown = frames[int(np.ceil(start)) : int(np.floor(end))]
            assert ((shown >= 20) & (shown <= 51)).all() and (np.diff(shown) == 1).all()
        shown = frames[int(middle[0]) - 1 : int(middle[1]) + 1]
        assert len(shown) == 4
        assert not any(((shown >= np.floor(a)) & (shown <= np.ceil(b))).any() for a, b, _ in ACTIONS)
    assert sides == {True, False}


def test_draws_are_a_function_of_the_generator() -> None:
    drawn = [choose_splice(ACTIONS, 90, 4, np.random.default_rng(3)) for _ in range(2)]
    assert drawn[0] == drawn[1] != choose_splice(ACTIONS, 90, 4, np.random.default_rng(4))


def test_blocks_touch_no_action_and_no_filling() -> None:
    free = set(range(90)) - set(range(20, 52)) - set(range(70, 75))
    blocks = background_blocks(ACTIONS, 90, 4)
    assert blocks.tolist() == [b for b in range(87) if set(range(b, b + 4)) <= free]
    # A stretch of just th frames is not longer than th.
    assert background_blocks(np.array([[5.0, 20.0, 1]]), 21, 5).tolist() == []
    assert background_blocks(np.array([[6.0, 20.0, 1]]), 21, 5).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("actions", "frames", "th"),
    [
        (ACTIONS, 90, 16),  # no action longer than 32
        (ACTIONS[:1], 52, 21),  # no background longer than 21
        (np.empty((0, 3)), 90, 4),
        (ACTIONS, 90, 0),
    ],
)
def test_none_where_there_is_none(actions: np.ndarray, frames: int, th: int) -> None:
    assert choose_splice(actions, frames, th, np.random.default_rng(0)) is None


def test_an_action_of_just_twice_the_length() -> None:
    actions = np.array([[10.0, 18.0, 1]])
    assert choose_splice(actions, 40, 4, np.random.default_rng(0)) is None
    found = choose_splice(actions, 40, 4, np.random.default_rng(0), at_least=True)
    assert found is not None and found.cut == 14


def test_lengths_of_the_two_data_sets() -> None:
    assert block_length(3.2, "thumos") == 4 and block_length(11.9, "activitynet") == 2
    assert block_length(3.9, "activitynet") == 0


def test_impossible_splices() -> None:
    with pytest.raises(UserError, match="block of 3 frames at 14 cannot go before frame 15"):
        Splice((10.0, 20.0), 3, 15, 14)
    with pytest.raises(UserError, match="frames 28 to 30 is not in a clip of 30"):
        Splice((10.0, 20.0), 3, 15, 28).frame_map(30)
