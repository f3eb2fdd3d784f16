"""Clips of a moving digit whose actions can be told only by what was shown long before (generator `digit_motion`).

One scan of scikit-learn's digits stands in a clip and trembles. In the later part it swings to and fro one to three
times: the actions. Whether it swings sideways or up and down can be seen at the spot. The other half of an action's
class is a bright band at the top or at the left, which is shown in the first frames only, further back than local
attention reaches.

Shapes: B clips, T frames, S side of a frame, K actions at most.
"""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from paperkit.data.seeding import seed_of

FRAMES, SIDE, GLYPH = 240, 16, 8
CUE_FRAMES, CUE_PIXELS = 46, 4
FIRST = 160
"""No action starts earlier: windows, positional convolutions and the head's own carry the cue to frame 159 at most."""
SHORTEST, LONGEST, ACTIONS = 8, 24, 3
SWING, PERIOD = 3, 6
JITTER, NOISE = 0.3, 0.1
CLASSES = ("sideways, band at top", "up and down, band at top", "sideways, band at left", "up and down, band at left")
"""Class = direction + 2 x cue; a label is one more, since 0 is background."""
SPLITS = {"train": (0, 1000), "val": (1000, 1200), "test": (1200, 1797)}
"""Scans that each split's clips show; settings are chosen on `val`."""


class Clips(NamedTuple):
    """Frames (B, 1, T, S, S) float32, and actions (B, K, 3): start and end in [0, 1] of the clip, and label.

    The label is 1 to 4, and 0 where a clip has fewer than K actions.
    """

    frames: Tensor
    actions: Tensor

    def of_clip(self, clip: int) -> Tensor:
        """(n, 3), the actions of one clip."""
        return present(self.actions[clip])


def present(actions: Tensor) -> Tensor:
    """(K, 3) -> (n, 3), without the rows that fill up."""
    return actions[actions[:, 2] > 0]


def make_clips(split: str, count: int, *seed: int) -> Clips:
    """`count` clips of a split; they are a function of the split, the count and `seed`."""
    first, last = SPLITS[split]
    generator = torch.Generator().manual_seed(seed_of(first, *seed))

    def whole(low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers from `low` to `high`, both included."""
        return torch.randint(low, high + 1, shape, generator=generator)

    scans = torch.from_numpy(load_digits().images[first:last]).float() / 16
    glyphs = scans[whole(0, last - first - 1, count)]  # B 8 8
    cue, axes = whole(0, 1, count), whole(0, 1, count, ACTIONS)
    actions = torch.zeros(count, ACTIONS, 3)
    swing = torch.zeros(count, FRAMES, 2)  # down, right
    for clip, number in enumerate(whole(1, ACTIONS, count).tolist()):
        lengths = whole(SHORTEST, LONGEST, number)
        # Gaps of at least one still frame: the spare frames are cut at random places.
        spare = FRAMES - FIRST - int(lengths.sum()) - (number - 1)
        cuts = whole(0, spare, number).sort().values
        starts = FIRST + cuts + lengths.cumsum(0) - lengths + torch.arange(number)
        for i, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            phase = int(whole(0, PERIOD - 1))
            wave = SWING * torch.sin(2 * torch.pi * (torch.arange(length) + phase) / PERIOD)
            axis = int(axes[clip, i])
            swing[clip, start : start + length, 1 - axis] = wave
            actions[clip, i] = torch.tensor([start / FRAMES, (start + length) / FRAMES, 1 + axis + 2 * int(cue[clip])])

    middle = (SIDE - GLYPH) // 2
    at = middle + whole(-1, 1, count, 1, 2) + swing + JITTER * torch.randn(swing.shape, generator=generator)
    at = at.round().long().clamp(0, SIDE - GLYPH)  # B T 2
    frames = torch.einsum("btyi,bij,btxj->btyx", _shifts()[at[..., 0]], glyphs, _shifts()[at[..., 1]])
    top, left = cue == 0, cue == 1
    frames[top, :CUE_FRAMES, :CUE_PIXELS] += 1
    frames[left, :CUE_FRAMES, :, :CUE_PIXELS] += 1
    return Clips((frames + NOISE * torch.randn(frames.shape, generator=generator))[:, None], actions)


def other_cue(clips: Clips) -> Tensor:
    """The frames of the same clips with the band at the other place, bit for bit the same afterwards."""
    frames = clips.frames.clone()
    at_left = clips.actions[:, 0, 2] > 2
    band = torch.zeros(SIDE, SIDE)
    band[:CUE_PIXELS] += 1
    band[:, :CUE_PIXELS] -= 1
    frames[:, :, :CUE_FRAMES] += torch.where(at_left, 1.0, -1.0)[:, None, None, None, None] * band
    return frames


def _shifts() -> Tensor:
    """(9, S, 8): entry p puts pixel i of a scan at row p + i of a frame."""
    places = torch.arange(SIDE - GLYPH + 1)[:, None] + torch.arange(GLYPH)
    return torch.nn.functional.one_hot(places, SIDE).float().transpose(1, 2)
