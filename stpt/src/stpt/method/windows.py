"""Sliding windows over a long video, and the actions and boundaries in each (AFSD, section 4.1 and its data code).

Everything is counted in kept frames of the video. A window of T frames at `offset` is taken as [offset + 1,
offset + T], and an action in it is cut to [1, T] after the offset is taken off.

A actions, T frames of a clip. Actions are rows (start, end, label), (A, 3), in float64.
"""

import math

import numpy as np
from numpy.typing import NDArray

from paperkit.errors import UserError

Rows = NDArray[np.float64]
LEAST_INSIDE = 0.5
"""Share of an action that must lie in a window for it to belong to it."""


def window_offsets(frames: int, length: int, stride: int) -> list[int]:
    """Where the windows of a video begin: every `stride` frames, and a last one that ends with the video.

    A video that is not longer than a window has one, which is filled up.
    """
    if min(frames, length, stride) < 1:
        raise UserError(f"windows of {length} frames every {stride} over {frames} frames: all must be 1 or more")
    last = max(frames - length, 0)
    return [*range(0, last, stride), last]


def actions_in_window(actions: Rows, offset: int, length: int) -> tuple[Rows, bool]:
    """The actions that belong to a window, cut to [1, length], and whether one of them lies in it as a whole.

    Raises:
        UserError: an action without length.
    """
    start, end = actions[:, 0], actions[:, 1]
    if (end <= start).any():
        bad = actions[end <= start][0]
        raise UserError(f"an action from frame {bad[0]:g} to {bad[1]:g} has no length")
    inside = np.minimum(end, offset + length) - np.maximum(start, offset + 1)
    share = inside / (end - start)
    found = actions[share >= LEAST_INSIDE].copy()
    found[:, 0] = np.maximum(found[:, 0] - offset, 1.0)
    found[:, 1] = np.minimum(found[:, 1] - offset, float(length))
    return found, bool((share >= 1.0).any())


def training_windows(actions: Rows, frames: int, length: int, stride: int) -> tuple[list[tuple[int, Rows]], int]:
    """The windows of a video to train on, (offset, actions in it), and the length of its shortest action, rounded up.

    A window is kept if an action lies in it as a whole. The shortest action is sought over all windows, kept or not; it
    is `length` where there is none.
    """
    kept, shortest = [], float(length)
    for offset in window_offsets(frames, length, stride):
        found, whole = actions_in_window(actions, offset, length)
        if len(found):
            shortest = min(shortest, float((found[:, 1] - found[:, 0]).min()))
        if whole:
            kept.append((offset, found))
    return kept, math.ceil(shortest)


def boundary_masks(actions: Rows, length: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """1 around the starts and around the ends of actions, each (T,), 0 elsewhere.

    With d = max((end - start) / 10, 2) the ones are [round(x - d/2), round(x + d/2)] around x, held in the clip; half
    is rounded to even.
    """
    half = np.maximum((actions[:, 1] - actions[:, 0]) / 10, 2.0) / 2
    masks = np.zeros((2, length), np.uint8)
    for mask, middle in zip(masks, actions[:, :2].T, strict=True):
        first, last = (np.rint(middle + side * half).clip(0, length - 1).astype(int) for side in (-1, 1))
        for a, b in zip(first, last, strict=True):
            mask[a : b + 1] = 1
    return masks[0], masks[1]
