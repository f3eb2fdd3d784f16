"""Reference files of the evaluation, made here by plain loops in other sizes than the given ones."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from paperkit.testing.golden import (
    check_altered_results_fail,
    check_unknown_option_is_refused,
    check_verifies,
    verified,
)
from stpt.verification.evaluation import KINDS


def released(rows: Tensor, sigma: float, top_k: int, least: float) -> Tensor:
    """Soft-NMS as released, number by number: the last candidate is lost, order of the input."""
    left = {i: row[2].item() for i, row in enumerate(rows) if row[2] >= least}
    taken: dict[int, float] = {}
    while len(left) > 1 and len(taken) < top_k:
        best = max(left, key=lambda i: left[i])
        taken[best] = left.pop(best)
        for i in list(left):
            common = max(min(rows[best, 1], rows[i, 1]) - max(rows[best, 0], rows[i, 0]), torch.tensor(0.0))
            union = rows[best, 1] - rows[best, 0] + rows[i, 1] - rows[i, 0] - common
            left[i] *= math.exp(-(float(common / union) ** 2) / sigma)
            if left[i] < least:
                del left[i]
    return torch.tensor([[*rows[i, :2].tolist(), taken[i]] for i in sorted(taken)]).reshape(-1, 3)


def save(path: Path, kind: str, config: Any, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path / f"{kind}.safetensors", {"kind": kind, "config": json.dumps(config), "describes": "made"})
    return path / f"{kind}.safetensors"


def nms_file(folder: Path, count: int = 23, **config: Any) -> Path:
    start = 30 * torch.rand(count)
    rows = torch.stack([start, start + 1 + 6 * torch.rand(count), torch.rand(count)], 1)
    rows[count // 2, 2] = rows[0, 2]  # a tie
    settings = {
        "s0.3": (count, 0.3, 5000, 0.001), "s0.85": (count, 0.85, 100, 1e-9), "top3": (count, 0.5, 3, 0.001),
        "thr0.5": (count, 0.5, 5000, 0.5), "single": (1, 0.5, 5000, 0.001), "pair": (2, 0.5, 5000, 0.001),
    }  # fmt: skip
    tensors = {"in.segments": rows}
    for name, (some, *setting) in settings.items():
        tensors[f"out.soft.{name}"] = released(rows[:some], *setting)
        tensors[f"out.soft_count.{name}"] = torch.tensor(len(tensors[f"out.soft.{name}"]))
    left, keep = sorted(range(count), key=lambda i: (rows[i, 2].item(), i)), []
    while left:
        best = rows[left[-1]]
        keep.append(left.pop())
        common = [(min(best[1], rows[i, 1]) - max(best[0], rows[i, 0])).clamp(min=0).item() for i in left]
        widths = [(best[1] - best[0] + rows[i, 1] - rows[i, 0]).item() for i in left]
        left = [i for i, c, w in zip(left, common, widths, strict=True) if c < 0.5 * (w - c)]
    tensors |= {"out.nms_keep": torch.tensor(keep), "out.nms_count": torch.tensor(len(keep))}
    cases = {name: "sigma .3, top_k 5000, min score .001" if name == "s0.3" else "" for name in settings}
    return save(folder, "nms", {"N": count, "cases": cases} | config, tensors)


def windows_file(folder: Path, **config: Any) -> Path:
    """Three windows of 32 frames at 8 a second; the last class is below every threshold."""
    cells, offsets, fps = 12, [0, 16, 20], 8.0
    priors = torch.cat([(torch.arange(8) + 0.5) / 8, (torch.arange(4) + 0.5) / 4])[:, None]
    tensors, found = {"in.priors": priors}, []
    for window, offset in enumerate(offsets):
        loc, prop_loc = 12 * torch.rand(cells, 2), 0.2 * torch.randn(cells, 2)
        conf, prop_conf, center = (torch.randn(cells, n) for n in (4, 4, 1))
        conf[:, 3], prop_conf[:, 3] = -5, -5
        values = {"loc": loc, "prop_loc": prop_loc, "conf": conf, "prop_conf": prop_conf, "center": center}
        tensors |= {f"in.w{window}.{name}": value for name, value in values.items()}
        moved = loc + 0.5 * (loc[:, :1] + loc[:, 1:]) * prop_loc
        segments = torch.cat([32 * priors - moved[:, :1], 32 * priors + moved[:, 1:]], 1).clamp(0, 32)
        scores = (conf.softmax(1) + prop_conf.softmax(1)) / 2 * center.sigmoid()
        tensors |= {f"out.w{window}.segments": segments, f"out.w{window}.scores": scores}
        found.append(((segments + offset) / fps, scores))
    for label in (1, 2):
        rows = torch.cat([torch.cat([s, p[:, label : label + 1]], 1)[p[:, label] > 0.05] for s, p in found])
        tensors[f"out.class{label}"] = released(rows, 0.4, 9, 0.001)
    settings = {
        "num_classes": 4, "clip_length": 32, "sample_fps": fps, "offsets": offsets, "conf_thresh": 0.05, "sigma": 0.4,
        "top_k": 9, "layers": 2, "feat_t": 8,
    }  # fmt: skip
    return save(folder, "postprocess_thumos", settings | config, tensors)


def map_file(folder: Path, **config: Any) -> Path:
    """Class 2 is named first, class 1 not at all; video 2 is of another subset, video 1 has no action."""
    tensors = {
        "in.gt_video": torch.tensor([3, 0, 2, 0]), "in.gt_label": torch.tensor([0, 2, 1, 2]),
        "in.gt_segment": torch.tensor([[0, 10], [0, 10], [0, 10], [20, 30]]).double(),
        "in.pred_video": torch.tensor([3, 3, 0, 0, 0, 1, 2]), "in.pred_label": torch.tensor([0, 0, 2, 2, 3, 2, 1]),
        "in.pred_segment": torch.tensor([[40, 50], [0, 8], [0, 10], [20, 25], [0, 10], [0, 10], [0, 10]]).double(),
        "in.pred_score": torch.tensor([0.9, 0.9, 0.8, 0.7, 0.9, 0.95, 0.9]).double(),
        "in.own.tiou": torch.tensor([0.5, 0.9]).double(), "out.class_column": torch.tensor([1, -1, 0]),
        # The tie in class 0 goes to the row below, which is right at 0.5.
        "out.own.ap": torch.tensor([[1.0, 1.0], [0.5, 0.0]]).double(),
        "out.own.mAP": torch.tensor([1.0, 0.25]).double(), "out.own.average_mAP": torch.tensor(0.625),
    }  # fmt: skip
    settings = {"num_videos": 4, "num_classes": 3, "subset": "test", "video_in_other_subset": 2}
    return save(folder, "map_eval", settings | config, tensors)


MADE = {"nms": nms_file, "postprocess_thumos": windows_file, "map_eval": map_file}


@pytest.mark.parametrize("kind", MADE)
def test_made_files_verify_and_altered_ones_do_not(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    path = MADE[kind](tmp_path)
    check_verifies(path, KINDS)
    (tmp_path / "twins").mkdir()
    check_altered_results_fail(path, KINDS, tmp_path / "twins", most=30)
    check_unknown_option_is_refused(path, KINDS, tmp_path / "twins")


@pytest.mark.parametrize("count", [1, 2])
def test_few_candidates(count: int, tmp_path: Path) -> None:
    check_verifies(nms_file(tmp_path, count), KINDS)


@pytest.mark.parametrize(
    ("make", "config", "words"),
    [
        (nms_file, {"N": 22}, "config.N is 22; the tensors have 23"),
        (nms_file, {"cases": {"top3": "top_k 4"}}, "case top3 is described with top_k 4"),
        (nms_file, {"cases": {"often": ""}}, "missing tensor out.soft.often"),
        (nms_file, {"cases": [1]}, "config.cases is no mapping"),
        (windows_file, {"offsets": [0, 16]}, "config.offsets has 2 windows; the tensors have 3"),
        (windows_file, {"offsets": 3}, "no list of whole numbers"),
        (windows_file, {"feat_t": 16}, "2 levels from 16 cells on are not the 12 priors"),
        (windows_file, {"num_classes": 5}, "config.num_classes is 5; the tensors have 4"),
        (windows_file, {"conf_thresh": 1e-4, "min_score": 1e-4}, "missing tensor out.class3"),
        (map_file, {"num_videos": 3}, "none of the 3"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_one_line(make: Any, config: Any, words: str, tmp_path: Path) -> None:
    good, printed = verified(make(tmp_path, **config), KINDS)
    assert not good and words in printed, printed
