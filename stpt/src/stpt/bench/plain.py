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


def mean_average_precision(
    truth: Truth, detections: Sequence[Detection], classes: int, thresholds: Sequence[float]
) -> float:
    """Average mAP as ActivityNet's evaluator computes it: detections one by one, thresholds one by one.

    Detections in videos without any action in `truth` are left out.
    """
    total = 0.0
    for label in range(classes):
        of_class = {video: [(s, e) for c, s, e in actions if c == label] for video, actions in truth.items()}
        many = sum(map(len, of_class.values()))
        if not many:
            continue
        mine = [found for found in detections if found[1] == label and found[0] in truth]
        mine = [mine[i] for i in np.argsort([found[4] for found in mine])[::-1]]
        taken = [{video: [False] * len(actions) for video, actions in of_class.items()} for _ in thresholds]
        hits = np.zeros((len(thresholds), len(mine)))
        for row, (video, _, start, end, _) in enumerate(mine):
            actions = of_class[video]
            if not actions:
                continue
            s, e = np.array(actions).T
            shared = (np.minimum(e, end) - np.maximum(s, start)).clip(min=0)
            overlap = shared / (e - s + end - start - shared)
            for number, threshold in enumerate(thresholds):
                for index in overlap.argsort()[::-1]:
                    if overlap[index] < threshold:
                        break
                    if not taken[number][video][index]:
                        taken[number][video][index] = True
                        hits[number, row] = 1
                        break
        for hit in hits:
            total += _area(hit, many)
    return total / len(thresholds) / len({c for actions in truth.values() for c, _, _ in actions})


def _area(hit: Floats, many: int) -> float:
    """Area under the interpolated precision-recall curve."""
    true = hit.cumsum()
    precision = np.concatenate([[0], true / np.arange(1, len(hit) + 1), [0]])
    recall = np.concatenate([[0], true / many, [1]])
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return float(((recall[steps] - recall[steps - 1]) * precision[steps]).sum())
