"""Boundary pooling, soft-NMS and mAP on made input: ours first, then the rivals under the same input."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mmaction.evaluation.functional.eval_detection import compute_average_precision_detection
from numpy.typing import DTypeLike
from torch import Tensor

from stpt.bench import plain
from stpt.bench.plain import Floats
from stpt.method.boundary_pooling import boundary_max_pooling
from stpt.method.detection_map import THUMOS14, Instances, mean_average_precision
from stpt.method.soft_nms import soft_nms_many

OURS, LOOP, MASKS = "sparse table", "loop over windows", "masked maxima"
PADDED, BY_CLASS, BY_CANDIDATE = "one padded problem", "class after class", "candidate after candidate"
VECTORISED, MMACTION, LOOPS = "vectorised", "mmaction2's evaluator", "plain loops"
SIGMA, TOP, LEAST = 0.5, 5000, 0.001
"""Of soft-NMS on THUMOS14."""
VIDEOS, ACTIONS, CLASSES = 210, 3311, 20
"""Of THUMOS14's test set."""

Steps = dict[str, Callable[[], object]]


def pooling_steps(clips: int, channels: int, cells: int, windows: int, backward: bool) -> Steps:
    """Boundary pooling of features behind a ReLU, with windows around boundaries of actions of every length."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(clips, channels, cells, generator=generator).relu()
    middle = torch.rand(clips, windows, generator=generator) * cells
    length = torch.rand(clips, windows, generator=generator).square() * cells
    start, end = middle - length / 2, middle + length / 2
    outer, inner = (length / 10).clamp(min=1), (length / 4).clamp(min=1)
    segments = torch.stack([start - outer, start + inner, end - inner, end + outer], 2).round()
    cotangent = torch.randn(clips, channels, windows, generator=generator)
    forms = {OURS: boundary_max_pooling, LOOP: plain.pooled_by_loop, MASKS: plain.pooled_by_masks}
    return {name: partial(_pooled, form, x, segments, cotangent if backward else None) for name, form in forms.items()}


def _pooled(form: Callable[[Tensor, Tensor], Tensor], x: Tensor, segments: Tensor, cotangent: Tensor | None) -> Tensor:
    """The pooled features, or the gradient of the input."""
    if cotangent is None:
        with torch.inference_mode():
            return form(x, segments)
    x = x.detach().requires_grad_()
    return torch.autograd.grad(form(x, segments), x, cotangent)[0]


def nms_steps(classes: int, candidates: int, dtype: DTypeLike = np.float32) -> Steps:
    """Soft-NMS of made candidates of a video of 200 s; each gives a (n, 3) array of start, end, score a class."""
    generator = np.random.default_rng(0)
    middle = generator.uniform(0, 200, (classes, candidates))
    length = generator.lognormal(1, 0.7, (classes, candidates))
    segments = np.stack([middle - length / 2, middle + length / 2], 2).astype(dtype)
    scores = generator.beta(0.6, 3, (classes, candidates)).clip(0.01, 1).astype(dtype)
    forms = {PADDED: soft_nms_padded, BY_CLASS: plain.soft_nms_by_class, BY_CANDIDATE: plain.soft_nms_by_candidate}
    return {name: partial(form, segments, scores, SIGMA, TOP, LEAST) for name, form in forms.items()}


def soft_nms_padded(segments: Floats, scores: Floats, sigma: float, top_k: int, min_score: float) -> list[Floats]:
    """This package's soft-NMS behind the rivals' interface, see `stpt.bench.plain.soft_nms_by_class`."""
    kept = soft_nms_many(list(zip(segments, scores, strict=True)), sigma, top_k, min_score)
    return [np.column_stack([of_class[k.which], k.scores]) for of_class, k in zip(segments, kept, strict=True)]


def map_steps(videos: int, actions: int, detections: int) -> Steps:
    """Average mAP of made detections around made actions; nearly each video has actions of one class, as THUMOS14."""
    generator = np.random.default_rng(0)
    of_video = generator.integers(0, CLASSES, videos)
    where = generator.integers(0, videos, actions)
    labels = np.where(generator.random(actions) < 0.95, of_video[where], generator.integers(0, CLASSES, actions))
    start, length = generator.uniform(0, 200, actions), generator.lognormal(1.2, 0.7, actions)
    near = generator.integers(0, actions, detections)
    moved = generator.normal(0, 0.4, (2, detections)) * length[near]
    found = np.sort(np.stack([start[near] + moved[0], (start + length)[near] + moved[1]], 1), 1)
    guesses = np.where(generator.random(detections) < 0.7, labels[near], generator.integers(0, CLASSES, detections))
    scores = generator.beta(0.6, 3, detections)

    truth = Instances(where, labels, np.stack([start, start + length], 1))
    ours = Instances(where[near], guesses, found, scores)
    of: dict[str, list[tuple[int, float, float]]] = {}
    for video, label, (s, e) in zip(where, labels.tolist(), truth.segments.tolist(), strict=True):
        of.setdefault(str(video), []).append((label, s, e))
    rows = zip(where[near], guesses.tolist(), found.tolist(), scores.tolist(), strict=True)
    theirs = [(str(video), label, s, e, score) for video, label, (s, e), score in rows]
    rows_by_class = _by_class((video, label, s, e) for video, some in of.items() for label, s, e in some)
    return {
        VECTORISED: lambda: mean_average_precision(ours, truth, THUMOS14).average,
        MMACTION: partial(_by_mmaction, rows_by_class, _by_class(theirs)),
        LOOPS: partial(plain.mean_average_precision, of, theirs, THUMOS14),
    }


def _by_class(rows: Iterable[Sequence[Any]]) -> dict[int, list[dict[str, Any]]]:
    """Rows (video, class, start, end and, of detections, score) as mmaction2's evaluator takes them."""
    found: dict[int, list[dict[str, Any]]] = {}
    for video, label, *numbers in rows:
        names = zip(("t-start", "t-end", "score"), numbers, strict=False)
        found.setdefault(label, []).append({"video-id": video, **dict(names)})
    return found


def _by_mmaction(actions: dict[int, list[dict[str, Any]]], found: dict[int, list[dict[str, Any]]]) -> float:
    """Average mAP by the function behind mmaction2's evaluator for ActivityNet, class after class."""
    thresholds = np.array(THUMOS14)
    aps = [
        compute_average_precision_detection(rows, found.get(label, []), thresholds) for label, rows in actions.items()
    ]
    return float(np.mean(aps))
