"""The rivals of the race, written down as one would: loops over windows, over candidates and over detections.

Shapes: B clips, C channels, T cells, K windows; N candidates of a class.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Truth = Mapping[str, Sequence[tuple[int, float, float]]]
"""Video -> actions: class, start, end."""
Detection = tuple[str, int, float, float, float]
"""Video, class, start, end, score."""


def pooled_by_loop(x: Tensor, windows: Tensor) -> Tensor:
    """Boundary pooling, a window after the other: slices of all channels of a half, the first maximum of each.

    Args:
        x: (B, C, T). windows: (B, K, 4), in cells; cut to integers towards zero, then to the map.

    Returns:
        (B, C, K).
    """
    half, last = x.shape[1] // 2, x.shape[2] - 1
    clips = []
    for clip, of_clip in zip(x, windows.trunc().long().clamp(0, last).tolist(), strict=True):
        starts, ends = clip[:half], clip[half:]
        columns = [
            torch.cat([_largest(starts[:, a : max(a, b) + 1]), _largest(ends[:, c : max(c, d) + 1])])
            for a, b, c, d in of_clip
        ]
        clips.append(torch.stack(columns, 1))
    return torch.stack(clips)


def pooled_by_masks(x: Tensor, windows: Tensor, chunk: int = 16) -> Tensor:
    """Boundary pooling by maxima over masked copies of the map, `chunk` windows at a time. As `pooled_by_loop`."""
    half, cells = x.shape[1] // 2, torch.arange(x.shape[2], device=x.device)
    a, b, c, d = windows.trunc().long().clamp(0, x.shape[2] - 1).unbind(2)
    parts = []
    for channels, low, high in ((x[:, :half], a, b), (x[:, half:], c, d)):
        outside = (cells < low[..., None]) | (cells > torch.maximum(low, high)[..., None])
        pieces = [
            _largest(channels[:, :, None].masked_fill(some[:, None], -math.inf)) for some in outside.split(chunk, 1)
        ]
        parts.append(torch.cat(pieces, 2))
    return torch.cat(parts, 1)


def _largest(x: Tensor) -> Tensor:
    """Along the last axis. Gradients go to the first maximum; where none are asked for, the faster `amax` serves."""
    return x.max(-1).values if x.requires_grad else x.amax(-1)


def soft_nms_by_class(segments: Floats, scores: Floats, sigma: float, top_k: int, min_score: float) -> list[Floats]:
    """Soft-NMS, a class after the other, each pick against all that are left in one step: the released code's form.

    Args:
        segments: (classes, N, 2). scores: (classes, N).

    Returns:
        For each class its rows (start, end, score) in the order in which they were taken.
    """
    found = []
    for of_class, score in zip(segments, scores, strict=True):
        left, score = of_class, score.copy()
        rows: list[tuple[float, float, float]] = []
        while len(score) and len(rows) < top_k:
            best = int(score.argmax())
            start, end = left[best]
            rows.append((start, end, score[best]))
            left, score = np.delete(left, best, 0), np.delete(score, best)
            shared = (np.minimum(left[:, 1], end) - np.maximum(left[:, 0], start)).clip(min=0)
            overlap = shared / np.maximum(left[:, 1] - left[:, 0] + (end - start) - shared, 1e-12)
            score = score * np.exp(-(overlap**2) / sigma)
            kept = score >= min_score
            left, score = left[kept], score[kept]
        found.append(np.array(rows).reshape(-1, 3))
    return found


def soft_nms_by_candidate(segments: Floats, scores: Floats, sigma: float, top_k: int, min_score: float) -> list[Floats]:
    """Soft-NMS, a candidate after the other, in loops of Python. As `soft_nms_by_class`."""
    found = []
    for of_class, score in zip(segments.tolist(), scores.tolist(), strict=True):
        left = [(*segment, value) for segment, value in zip(of_class, score, strict=True)]
        rows: list[tuple[float, float, float]] = []
        while left and len(rows) < top_k:
            best = 0
            for number, (_, _, value) in enumerate(left):
                if value > left[best][2]:
                    best = number
            start, end, value = left.pop(best)
            rows.append((start, end, value))
            kept = []
            for s, e, value in left:
                shared = min(e, end) - max(s, start)
                if shared > 0:
                    value *= math.exp(-((shared / max(e - s + end - start - shared, 1e-12)) ** 2) / sigma)
                if value >= min_score:
                    kept.append((s, e, value))
            left = kept
        found.append(np.array(rows).reshape(-1, 3))
    return found


def mean_average_precision(truth: Truth, detections: Sequence[Detection], thresholds: Sequence[float]) -> float:
    """Average mAP as ActivityNet's evaluator defines it: a threshold, a class, a detection and an action at a time.

    Detections in videos without any action in `truth` are left out.
    """
    present = {label for actions in truth.values() for label, _, _ in actions}
    total = 0.0
    for threshold in thresholds:
        for label in present:
            actions = {video: [(s, e) for c, s, e in rows if c == label] for video, rows in truth.items()}
            mine = [found for found in reversed(detections) if found[1] == label and found[0] in truth]
            mine.sort(key=lambda found: -found[4])  # of equal scores the last comes first
            taken = {video: [False] * len(rows) for video, rows in actions.items()}
            hits = []
            for video, _, start, end, _ in mine:
                best, best_overlap = -1, threshold
                for number, (s, e) in enumerate(actions[video]):
                    if not taken[video][number] and (shared := min(e, end) - max(s, start)) > 0:
                        overlap = shared / (e - s + end - start - shared)
                        if overlap >= best_overlap:
                            best, best_overlap = number, overlap
                hits.append(best >= 0)
                if best >= 0:
                    taken[video][best] = True
            total += _area(hits, sum(map(len, actions.values())))
    return total / len(thresholds) / len(present)


def _area(hits: Sequence[bool], many: int) -> float:
    """Area under the interpolated precision-recall curve."""
    precisions, true = [], 0
    for number, hit in enumerate(hits, 1):
        true += hit
        precisions.append(true / number)
    area, best = 0.0, 0.0
    for hit, precision in zip(reversed(hits), reversed(precisions), strict=True):
        best = max(best, precision)
        area += best * hit / many
    return area
