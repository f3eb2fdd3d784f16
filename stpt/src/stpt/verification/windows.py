"""Reference files of the data: training windows with their masks, and the splice of boundary consistency learning."""

import re
from typing import Any

import torch
from torch import Tensor

from paperkit.errors import UserError
from paperkit.verification.verify import Kind, ReferenceFile, Tolerance
from stpt.method.splice import Splice
from stpt.method.windows import boundary_masks, training_windows

MOST_WINDOWS = 100_000
"""Of a video; a file may hold any number."""


def train_windows(file: ReferenceFile) -> dict[str, Any]:
    """Kept windows of all videos, numbered through, and each video's shortest action."""
    length, stride = (int(file.config[key]) for key in ("clip_length", "stride"))
    computed: dict[str, Any] = {}
    number = 0
    for video in _numbers(file, r"annos\.(\d+)"):
        actions, frames = file.inputs[f"annos.{video}"], int(file.inputs[f"sample_count.{video}"])
        if frames > MOST_WINDOWS * max(stride, 1):
            raise UserError(
                f"in.sample_count.{video} is {frames}; the most that this kind takes is {MOST_WINDOWS} windows"
            )
        windows, shortest = training_windows(actions.double().reshape(-1, 3).numpy(), frames, length, stride)
        computed[f"out.min_anno.{video}"] = torch.tensor(shortest)
        for offset, found in windows:
            masks = zip(("start", "end"), boundary_masks(found, length), strict=True)
            values = {"video": torch.tensor(video), "offset": torch.tensor(offset), "annos": torch.from_numpy(found)}
            values |= {name: torch.from_numpy(mask) for name, mask in masks}
            computed |= {f"out.win{number}.{name}": value for name, value in values.items()}
            number += 1
    named = [int(match[1]) for name in file.outputs if (match := re.match(r"win(\d+)\.", name))]
    given = max(named, default=-1) + 1
    if given != number:
        raise UserError(f"{number} windows are kept; the file has {given}")
    return {**computed, "config.windows": number}


def consistency_augment(file: ReferenceFile) -> dict[str, Any]:
    """The map of frames and the three segments of each case."""
    computed: dict[str, Tensor] = {}
    cases = _numbers(file, r"(\d+)\.gt")
    if "cases" in file.config and file.config["cases"] != len(cases):
        raise UserError(f"config.cases is {file.config['cases']}; the tensors have {len(cases)}")
    for case in cases:
        start, end = file.inputs[f"{case}.gt"].double()[:2].tolist()
        th, cut, background = (int(value) for value in file.inputs[f"{case}.th_t_bg"])
        splice = Splice((start, end), th, cut, background)
        computed[f"out.{case}.frame_map"] = torch.from_numpy(splice.frame_map(int(file.config["clip_length"])))
        computed[f"out.{case}.segments"] = torch.from_numpy(splice.segments())
    return computed


def _numbers(file: ReferenceFile, pattern: str) -> list[int]:
    return sorted(int(match[1]) for name in file.inputs if (match := re.fullmatch(pattern, name)))


_EXACT = Tolerance(0.0, absolute=1e-9)
KINDS = {
    "train_windows": Kind(
        train_windows, _EXACT, results=("windows",), options=("clip_length", "stride"), requires=("in.annos.0",)
    ),
    "consistency_augment": Kind(
        consistency_augment, _EXACT, options=("clip_length", "cases"), requires=("in.0.gt", "in.0.th_t_bg")
    ),
}
