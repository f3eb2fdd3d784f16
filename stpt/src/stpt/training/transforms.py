"""Steps of a clip's pipeline, from its place in a video to tensors; registered in mmengine's scope `stpt`.

A step takes and gives a dict: `source` (`stpt.training.frames.Source`), `video`, `offset`, `length` T, `frame_num`
(frames of the clip that are pictures), `actions` (A, 3) in frames of the clip, `th` (block of the splice; 0: none),
`at_least` (see `choose_splice`) and what steps before it added. Random numbers are numpy's global ones, which the data
set seeds for each sample.

T frames, H height, W width.
"""

from typing import Any

import numpy as np
import torch
from mmaction.structures import ActionDataSample
from numpy.typing import NDArray

from paperkit.errors import UserError
from paperkit.training.openmmlab import own_scope
from stpt.method.splice import choose_splice
from stpt.method.windows import boundary_masks

TRANSFORMS = own_scope("stpt").TRANSFORMS
Sample = dict[str, Any]


@TRANSFORMS.register_module()
class ReadClip:
    """Adds `clip`, uint8 (T, H, W, 3): frames of the video from `offset` on, black after its end."""

    def __call__(self, sample: Sample) -> Sample:
        offset, count = sample["offset"], sample["frame_num"]
        frames = sample["source"].read(sample["video"], offset, offset + count)
        clip = np.zeros((sample["length"], *frames.shape[1:]), np.uint8)
        clip[: len(frames)] = frames
        return {**sample, "clip": clip}


@TRANSFORMS.register_module()
class CropClip:
    """Cuts one square of all frames.

    Args:
        size: its side. random: where it lies; the middle otherwise.
    """

    def __init__(self, size: int, random: bool = False) -> None:
        self.size, self.random = size, random

    def __call__(self, sample: Sample) -> Sample:
        height, width = sample["clip"].shape[1:3]
        if min(height, width) < self.size:
            raise UserError(f"a crop of {self.size} pixels does not fit into frames of {height}x{width}")
        spare = height - self.size, width - self.size
        top, left = (np.random.randint(s + 1) if self.random else s // 2 for s in spare)
        return {**sample, "clip": sample["clip"][:, top : top + self.size, left : left + self.size]}


@TRANSFORMS.register_module()
class FlipClip:
    """Turns all frames of a clip left to right, or none.

    Args:
        prob: of a turn.
    """

    def __init__(self, prob: float = 0.5) -> None:
        self.prob = prob

    def __call__(self, sample: Sample) -> Sample:
        return {**sample, "clip": sample["clip"][:, :, ::-1]} if np.random.random() < self.prob else sample


@TRANSFORMS.register_module()
class ConsistencySplice:
    """Adds `splice`, the edit of boundary consistency learning (`stpt.method.splice`), where there is one."""

    def __call__(self, sample: Sample) -> Sample:
        generator = np.random.default_rng(np.random.randint(2**31))
        found = choose_splice(sample["actions"], sample["frame_num"], sample["th"], generator, sample["at_least"])
        return sample if found is None else {**sample, "splice": found}


@TRANSFORMS.register_module()
class BoundaryMasks:
    """Adds `start_mask` and `end_mask`, (T,): 1 around the starts and the ends of actions."""

    def __call__(self, sample: Sample) -> Sample:
        start, end = boundary_masks(sample["actions"], sample["length"])
        return {**sample, "start_mask": start, "end_mask": end}


@TRANSFORMS.register_module()
class PackActions:
    """A sample as models take it: `inputs` uint8 (3, T, H, W) and `data_samples`, an `ActionDataSample`.

    Its fields: `gt_segments` (A, 2) in frames of the clip, `gt_labels` (A,) of 1..C; if the steps were there,
    `start_mask`, `end_mask` (T,), and, if the clip has a splice, `splice_inputs` uint8 (3, T, H, W) and
    `splice_segments` (3, 2).
    Its metainfo: `video`, `offset`, `sample_fps`, `duration` (s), `frame_num`, and `pad_mode`: frames from `frame_num`
    on stay black as they are ("black"), or must be set to 0 after the pixels are normalised ("grey").
    """

    META = ("video", "offset", "sample_fps", "duration", "frame_num", "pad_mode")

    def __call__(self, sample: Sample) -> Sample:
        actions: NDArray[np.float64] = sample["actions"]
        data = ActionDataSample(metainfo={key: sample[key] for key in self.META})
        data.gt_segments = torch.from_numpy(actions[:, :2].astype(np.float32))
        data.gt_labels = torch.from_numpy(actions[:, 2].astype(np.int64))
        for name in ("start_mask", "end_mask"):
            if name in sample:
                setattr(data, name, torch.from_numpy(sample[name].astype(np.float32)))
        clip = torch.from_numpy(np.ascontiguousarray(sample["clip"].transpose(3, 0, 1, 2)))
        if "splice" in sample:
            frames = torch.from_numpy(sample["splice"].frame_map(sample["length"]))
            data.splice_inputs = clip[:, frames]
            data.splice_segments = torch.from_numpy(sample["splice"].segments().astype(np.float32))
        return {"inputs": clip, "data_samples": data}
