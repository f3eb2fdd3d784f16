"""The second, edited clip of boundary consistency learning: background put into an action (AFSD, section 3.4).

A block of `th` background frames is taken out and put directly before a frame t inside an action, which falls into two
parts. The features where the first part ends should then be like those where the second begins, and unlike those where
the background begins.

T frames of a clip. Actions are rows (start, end, label) in frames of the clip, (A, 3).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from paperkit.errors import UserError

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Splice:
    """One edit.

    Attributes:
        action: (start, end) in frames. length: th, of the block.
        cut: frame t before which the block goes. background: first frame of the block.
    """

    action: tuple[float, float]
    length: int
    cut: int
    background: int

    def __post_init__(self) -> None:
        start, end = self.action
        block_end = self.background + self.length
        if self.length < 1 or not (start <= self.cut <= end and (block_end <= self.cut or self.background >= self.cut)):
            raise UserError(
                f"a block of {self.length} frames at {self.background} cannot go before frame {self.cut} of the action "
                f"{start:g} to {end:g}"
            )

    @property
    def after(self) -> bool:
        """Whether the block comes from behind the cut."""
        return self.background >= self.cut

    def frame_map(self, frames: int) -> NDArray[np.int64]:
        """(T,): the frame of the clip that stands at each place of the edited one."""
        block = np.arange(self.background, self.background + self.length)
        if self.background < 0 or block[-1] >= frames:
            raise UserError(f"a block of frames {block[0]} to {block[-1]} is not in a clip of {frames}")
        rest = np.delete(np.arange(frames), block)
        place = self.cut if self.after else self.cut - self.length
        return np.insert(rest, place, block)

    def segments(self) -> NDArray[np.float64]:
        """(3, 2): first part of the action, second part, background between them, in frames of the edited clip."""
        (start, end), th, t = self.action, self.length, self.cut
        if self.after:
            return np.array([[start, t], [t + th, end + th], [t + 1, t + th - 1]], np.float64)
        return np.array([[start - th, t - th], [t, end], [t - th + 1, t - 1]], np.float64)


def block_length(shortest: float, variant: Literal["thumos", "activitynet"]) -> int:
    """th of a video: its shortest action, rounded up (THUMOS14), or a quarter of it, rounded down (ActivityNet)."""
    return int(np.ceil(shortest)) if variant == "thumos" else int(shortest) // 4


def choose_splice(
    actions: Rows,
    frames: int,
    th: int,
    generator: np.random.Generator,
    at_least: bool = False,
) -> Splice | None:
    """A random edit of a clip, or None where there is none.

    The action is longer than 2 th, the cut lies in it at least th from both ends, and the block in a stretch of more
    than th frames without any action. All that there are are equally likely.

    Args:
        frames: of the clip that are pictures: what it was filled up with is no background.
        generator: its draws decide: an action, a place in it, a place in the background.
        at_least: the action may also be of just 2 th, as in AFSD's code for ActivityNet.
    """
    if th < 1 or not len(actions):
        return None
    lengths = actions[:, 1] - actions[:, 0]
    long = actions[lengths >= 2 * th if at_least else lengths > 2 * th]
    cuts = [(action, np.arange(np.ceil(action[0] + th), np.floor(action[1] - th) + 1, dtype=int)) for action in long]
    cuts = [(action, places) for action, places in cuts if len(places)]
    blocks = background_blocks(actions, frames, th)
    if not cuts or not len(blocks):
        return None
    action, places = cuts[generator.integers(len(cuts))]
    cut, block = generator.choice(places), generator.choice(blocks)
    return Splice((float(action[0]), float(action[1])), th, int(cut), int(block))


def background_blocks(actions: Rows, frames: int, th: int) -> NDArray[np.int64]:
    """First frames of all blocks of `th` frames in stretches of more than `th` frames that touch no action."""
    free = np.ones(frames + 2, bool)
    free[0] = free[-1] = False  # ends of the clip, one place off
    for start, end in actions[:, :2]:
        free[max(int(np.floor(start)), 0) + 1 : int(np.ceil(end)) + 2] = False
    edges = np.flatnonzero(np.diff(free.astype(np.int8)))
    stretches = edges.reshape(-1, 2)  # [first free frame, first frame behind)
    return np.concatenate([np.arange(a, b - th + 1) for a, b in stretches if b - a > th] or [np.empty(0, np.int64)])
