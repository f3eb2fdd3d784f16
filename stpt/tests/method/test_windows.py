"""Windows, the actions in them, and masks, against counts by hand."""

import numpy as np
import pytest

from paperkit.errors import UserError
from stpt.method.windows import actions_in_window, boundary_masks, training_windows, window_offsets


@pytest.mark.parametrize(
    ("frames", "length", "stride", "offsets"),
    [
        (150, 64, 16, [0, 16, 32, 48, 64, 80, 86]),
        (64, 64, 16, [0]),
        (50, 64, 16, [0]),
        (96, 64, 16, [0, 16, 32]),  # the aligned last one is one of them
        (65, 64, 30, [0, 1]),
    ],
)
def test_offsets(frames: int, length: int, stride: int, offsets: list[int]) -> None:
    assert window_offsets(frames, length, stride) == offsets


@pytest.mark.parametrize(("frames", "stride"), [(257, 128), (1000, 128), (999, 30), (4000, 256)])
def test_every_frame_is_seen(frames: int, stride: int) -> None:
    seen = np.zeros(frames, bool)
    for offset in window_offsets(frames, 256, stride):
        assert offset + 256 <= frames
        seen[offset : offset + 256] = True
    assert seen.all()


def test_an_action_belongs_with_half_of_it() -> None:
    """Window [11, 20] at offset 10."""
    actions = np.array([[6.0, 16.0, 1], [6.1, 15.7, 2], [11.0, 20.0, 3], [10.9, 20.0, 4], [18.0, 22.0, 5]])
    found, whole = actions_in_window(actions, 10, 10)
    assert whole and found.tolist() == [[1, 6, 1], [1, 10, 3], [1, 10, 4], [8, 10, 5]]
    _, whole = actions_in_window(actions[[0, 3]], 10, 10)
    assert not whole  # frame 10.9 is before the window, by AFSD's count from 1


def test_shortest_action_is_sought_over_dropped_windows_too() -> None:
    """Only the windows at 16 and 20 hold 30..61 as a whole; the one at 0 cuts it to 30..50, which is shorter."""
    windows, shortest = training_windows(np.array([[30.0, 61.0, 1]]), 70, 50, 16)
    assert [offset for offset, _ in windows] == [16, 20] and shortest == 20
    assert training_windows(np.empty((0, 3)), 70, 50, 16) == ([], 50)


def test_masks() -> None:
    start, end = boundary_masks(np.array([[3.0, 43.0, 1], [0.5, 6.0, 2]]), 42)
    # d = 4 for the first: frames 1..5 and 41..45; d = 2 for the second: round(-0.5) = 0 to round(1.5) = 2, and 5..7
    assert np.flatnonzero(start).tolist() == [0, 1, 2, 3, 4, 5]
    assert np.flatnonzero(end).tolist() == [5, 6, 7, 41]
    assert start.dtype == np.uint8 and not boundary_masks(np.empty((0, 3)), 9)[0].any()


def test_half_is_rounded_to_even() -> None:
    start, _ = boundary_masks(np.array([[9.5, 12.0, 1]]), 20)  # 8.5 -> 8, 10.5 -> 10
    assert np.flatnonzero(start).tolist() == [8, 9, 10]


def test_impossible_windows_and_actions() -> None:
    with pytest.raises(UserError, match="windows of 64 frames every 0"):
        window_offsets(100, 64, 0)
    with pytest.raises(UserError, match="from frame 7 to 7 has no length"):
        actions_in_window(np.array([[7.0, 7.0, 1]]), 0, 10)
