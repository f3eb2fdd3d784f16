"""Files of windows and splices in other sizes than the given ones, with results counted frame by frame.

Videos without actions and shorter than a window, nested actions, one at the edges, strides beyond the clip.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from paperkit.testing.golden import changed, check_altered_results_fail, check_unknown_option_is_refused, verified
from stpt.verification.windows import KINDS

VIDEOS = [
    (100, []),
    (20, [(3.5, 9.25, 1), (4.0, 5.5, 2)]),
    (97, [(0.0, 3.0, 4), (0.5, 60.0, 1), (90.2, 97.0, 2), (40.0, 41.0, 3)]),
    (45, [(1.0, 40.0, 7)]),
]


def window_file(folder: Path, length: int, stride: int) -> Path:
    tensors: dict[str, Tensor] = {}
    windows = 0
    for v, (frames, actions) in enumerate(VIDEOS):
        tensors[f"in.annos.{v}"] = torch.tensor(actions, dtype=torch.float64).reshape(-1, 3)
        tensors[f"in.sample_count.{v}"] = torch.tensor(frames)
        offsets = [o for o in range(0, frames, stride) if o + length <= frames] or [0]
        if offsets[-1] + length < frames:
            offsets.append(frames - length)
        shortest = float(length)
        for offset in offsets:
            kept, whole = [], False
            for start, end, label in actions:
                inside = min(end, offset + length) - max(start, offset + 1)
                if inside >= 0.5 * (end - start):
                    kept.append((max(start - offset, 1.0), min(end - offset, float(length)), label))
                    shortest = min(shortest, kept[-1][1] - kept[-1][0])
                whole = whole or (start >= offset + 1 and end <= offset + length)
            if whole:
                masks = torch.zeros(2, length, dtype=torch.uint8)
                for action in kept:
                    d = max((action[1] - action[0]) / 10, 2)
                    for side in (0, 1):
                        first, last = round(action[side] - d / 2), round(action[side] + d / 2)
                        for t in range(length):
                            masks[side, t] |= max(first, 0) <= t <= last or (first >= length and t == length - 1)
                name = f"out.win{windows}"
                tensors |= {f"{name}.video": torch.tensor(v), f"{name}.offset": torch.tensor(offset)}
                tensors |= {f"{name}.annos": torch.tensor(kept, dtype=torch.float64)}
                tensors |= {f"{name}.start": masks[0].clone(), f"{name}.end": masks[1].clone()}
                windows += 1
        tensors[f"out.min_anno.{v}"] = torch.tensor(math.ceil(shortest))
    path = folder / f"train_windows_{length}_{stride}.safetensors"
    config = {"clip_length": length, "stride": stride, "windows": windows}
    save_file(tensors, path, {"kind": "train_windows", "config": json.dumps(config)})
    return path


def splice_file(folder: Path) -> Path:
    """Each output frame is followed by moving the block one place at a time."""
    tensors: dict[str, Tensor] = {}
    cases = [((4.5, 20.5), 2, 10, 25), ((4.5, 20.5), 2, 10, 1), ((10.0, 30.0), 7, 20, 33), ((10.0, 30.0), 7, 20, 0)]
    for i, ((start, end), th, cut, background) in enumerate(cases):
        frames = list(range(40))
        for k in range(th):
            if background >= cut:
                frames.insert(cut + k, frames.pop(background + k))
            else:
                frames.insert(cut - 1, frames.pop(background))
        after = background >= cut
        parts = ([[start, cut], [cut + th, end + th], [cut + 1, cut + th - 1]] if after else
                 [[start - th, cut - th], [cut, end], [cut - th + 1, cut - 1]])  # fmt: skip
        tensors |= {f"in.{i}.gt": torch.tensor([start, end, 1.0], dtype=torch.float64)}
        tensors |= {f"in.{i}.th_t_bg": torch.tensor([th, cut, background])}
        tensors |= {f"out.{i}.frame_map": torch.tensor(frames)}
        tensors |= {f"out.{i}.segments": torch.tensor(parts, dtype=torch.float64)}
    path = folder / "consistency_augment_40.safetensors"
    config = {"clip_length": 40, "cases": len(cases)}
    save_file(tensors, path, {"kind": "consistency_augment", "config": json.dumps(config)})
    return path


@pytest.mark.parametrize(("length", "stride"), [(32, 7), (16, 40), (97, 5), (8, 8)])
def test_windows_of_other_sizes(length: int, stride: int, tmp_path: Path) -> None:
    good, printed = verified(window_file(tmp_path, length, stride), KINDS)
    assert good, printed


def test_splices_of_other_sizes(tmp_path: Path) -> None:
    good, printed = verified(splice_file(tmp_path), KINDS)
    assert good, printed


@pytest.mark.parametrize("kind", ["windows", "splices"])
def test_altered_files_fail(kind: str, tmp_path: Path) -> None:
    path = window_file(tmp_path, 32, 7) if kind == "windows" else splice_file(tmp_path)
    (tmp_path / "twins").mkdir()
    check_altered_results_fail(path, KINDS, tmp_path / "twins", most=8, by=1e-6)
    check_unknown_option_is_refused(path, KINDS, tmp_path / "twins")


def test_impossible_files_are_one_line(tmp_path: Path) -> None:
    windows, splices = window_file(tmp_path, 32, 7), splice_file(tmp_path)
    (tmp_path / "twins").mkdir()
    cases = [
        (
            windows,
            dict(tensors={"in.sample_count.0": torch.tensor(10**12)}),
            "takes is 100000 windows",
        ),
        (windows, dict(tensors={"in.sample_count.1": None}), "missing tensor in.sample_count.1"),
        (windows, dict(config=lambda c: c.update(stride=0)), "windows of 32 frames every 0"),
        (windows, dict(config=lambda c: c.update(windows=99)), "FAIL  config.windows"),
        (windows, dict(tensors={"out.win0.video": None, "out.win99.video": torch.tensor(0)}), "the file has 100"),
        (windows, dict(tensors={"in.annos.3": torch.tensor([[5.0, 5.0, 1.0]])}), "frame 5 to 5 has no length"),
        (splices, dict(config=lambda c: c.update(cases=9)), "config.cases is 9; the tensors have 4"),
        (splices, dict(tensors={"in.0.th_t_bg": torch.tensor([2, 10, 39])}), "is not in a clip of 40"),
        (splices, dict(tensors={"in.0.th_t_bg": torch.tensor([2, 10, 9])}), "cannot go before frame 10"),
    ]
    for path, change, message in cases:
        good, printed = verified(changed(path, tmp_path / "twins", **change), KINDS)
        assert not good and message in printed, printed
