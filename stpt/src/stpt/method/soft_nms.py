"""Soft non-maximum suppression of segments, all classes and videos as one padded problem; from windows to detections.

Bodla et al., "Soft-NMS" (ICCV 2017), Gaussian form along time, as AFSD applies it: take the highest score, multiply
each remaining score by exp(-tIoU^2 / sigma), drop those now below a least score, go on.

Shapes: P problems (a class of a video each), N candidates, W windows of a video, K cells, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rule = Literal["corrected", "afsd"]
NARROWEST = 1e-5
"""Least length of the segment that suppresses, in AFSD as here."""
PADDED = 1 << 16
"""Candidates, padding included, of problems that are solved together: what a core's cache holds."""
COMPACT = 16
"""Steps between two looks at how many candidates are left."""


class Kept(NamedTuple):
    """What is left of a problem: which of its candidates (n,), and their decayed scores (n,)."""

    which: NDArray[np.int64]
    scores: NDArray[np.floating]


def soft_nms(
    segments: ArrayLike,
    scores: ArrayLike,
    sigma: float = 0.5,
    top_k: int = 5000,
    min_score: float = 0.001,
    rule: Rule = "corrected",
) -> Kept:
    """One problem: segments (N, 2) and scores (N,); the rest as `soft_nms_many`."""
    return soft_nms_many([(segments, scores)], sigma, top_k, min_score, rule)[0]


def soft_nms_many(
    problems: Sequence[tuple[ArrayLike, ArrayLike]],
    sigma: float = 0.5,
    top_k: int = 5000,
    min_score: float = 0.001,
    rule: Rule = "corrected",
) -> list[Kept]:
    """Each problem's candidates suppress one another; different problems do not touch.

    Args:
        problems: segments (N, 2) as (start, end), and scores (N,), arrays or CPU tensors; N may differ.
        sigma: of the Gaussian. top_k: most candidates that are kept. min_score: least score, before and after decay.
        rule: `corrected` keeps candidates in the order of falling scores. `afsd` is the released code, which stops when
            one candidate is left and loses it, so that a problem of one candidate yields none; order of the input.

    Raises:
        ValueError: sigma, min_score or top_k not above 0, an unknown rule, or shapes that do not belong together.
    """
    if not (sigma > 0 and min_score > 0 and top_k > 0) or rule not in ("corrected", "afsd"):
        given = f"sigma {sigma}, min_score {min_score}, top_k {top_k}, rule {rule!r}"
        raise ValueError(f"{given}: the first three must be above 0, the rule corrected or afsd")
    arrays = [_as_arrays(segments, scores) for segments, scores in problems]
    sizes = np.array([len(scores) for _, scores in arrays], dtype=np.int64)
    kept: list[Kept] = [Kept(np.empty(0, np.int64), scores[:0]) for _, scores in arrays]
    waiting = [int(place) for place in np.argsort(-sizes, kind="stable") if sizes[place]]
    while waiting:
        together = waiting[: max(1, PADDED // int(sizes[waiting[0]]))]
        waiting = waiting[len(together) :]
        solved = _solve([arrays[place] for place in together], sigma, top_k, min_score, rule == "afsd")
        for place, found in zip(together, solved, strict=True):
            kept[place] = found
    return kept


def hard_nms(segments: ArrayLike, scores: ArrayLike, overlap: float = 0.5, top_k: int = 5000) -> NDArray[np.int64]:
    """Indices of what is kept, in the order of falling scores: each drops those that overlap it by tIoU >= `overlap`.

    Args:
        segments: (N, 2). scores: (N,).
        top_k: only the highest scores take part. Of equal scores the last comes first, as in AFSD.
    """
    spans, values = _as_arrays(segments, scores)
    left = np.argsort(values, kind="stable")[::-1][:top_k]
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        common = np.minimum(spans[left, 1], spans[best, 1]) - np.maximum(spans[left, 0], spans[best, 0])
        common = np.maximum(common, 0)
        union = spans[left, 1] - spans[left, 0] - common + (spans[best, 1] - spans[best, 0])
        # Of two without length, 0 / 0, the second is dropped, as in AFSD.
        left = left[np.divide(common, union, out=np.full_like(common, overlap), where=union != 0) < overlap]
    return np.array(kept, dtype=np.int64)


def vote(kept: ArrayLike, segments: ArrayLike, scores: ArrayLike, overlap: float) -> NDArray[np.floating]:
    """Kept segments moved to the mean of the candidates around them, weighted by score x tIoU (n, 2).

    ActionFormer's and OpenTAD's refinement after suppression.

    Args:
        kept: (n, 2), some of the candidates. segments, scores: all candidates before suppression, (N, 2) and (N,).
        overlap: least tIoU of a candidate that has a say; 0.9 to 0.95 are usual, and a segment always has one itself.
    """
    (spans, values), found = _as_arrays(segments, scores), np.asarray(kept)
    ends = np.minimum(found[:, None, 1], spans[None, :, 1])
    common = np.maximum(ends - np.maximum(found[:, None, 0], spans[None, :, 0]), 0)
    lengths, widths = spans[:, 1] - spans[:, 0], found[:, 1] - found[:, 0]
    tiou = common / np.maximum(widths[:, None] + lengths[None] - common, NARROWEST)
    weights = np.where(tiou >= overlap, tiou, 0) * values[None]
    total = weights.sum(1, keepdims=True)
    return np.where(total > 0, weights @ spans / np.maximum(total, np.finfo(values.dtype).tiny), found)


@dataclass(frozen=True)
class PostProcess:
    """From cells to detections; the defaults are THUMOS14's in AFSD, the corrected rule aside.

    Attributes:
        above: only scores above it are candidates.
        sigma, top_k, min_score: of soft-NMS; top_k a class of a video.
        rule: `corrected`, `afsd`, or `hard` for hard NMS at `overlap`.
        overlap: of hard NMS.
        voting: least tIoU of score voting; None for none.
        cut: cut detections to the video, where its duration is known, and leave out what is empty then.
    """

    above: float = 0.01
    sigma: float = 0.5
    top_k: int = 5000
    min_score: float = 0.001
    rule: Literal["corrected", "afsd", "hard"] = "corrected"
    overlap: float = 0.5
    voting: float | None = None
    cut: bool = True


ACTIVITYNET = PostProcess(above=1e-9, sigma=0.85, top_k=100, min_score=1e-9)
"""The setting of ActivityNet."""


class Windows(NamedTuple):
    """What a network found in the windows of one video.

    Attributes:
        segments: (W, K, 2) in frames of the window.
        scores: (W, K, C + 1), column 0 for the background.
        offsets: first frame of each window (W,).
        fps: frames a second, as sampled.
        duration: of the video in seconds, if known.
    """

    segments: ArrayLike
    scores: ArrayLike
    offsets: ArrayLike
    fps: float
    duration: float | None = None


class Detections(NamedTuple):
    """Of one video: segments (n, 2) in seconds, scores (n,), labels (n,) in 1..C; the highest score first.

    By AFSD's rule class by class, each in the order of windows and cells.
    """

    segments: NDArray[np.floating]
    scores: NDArray[np.floating]
    labels: NDArray[np.int64]


def detections(videos: Sequence[Windows], how: PostProcess | None = None) -> list[Detections]:
    """The detections of each video: all its windows together, class by class, all of them batched."""
    how = how or PostProcess()
    problems: list[tuple[NDArray[np.floating], NDArray[np.floating]]] = []
    places: list[tuple[int, int]] = []
    for number, video in enumerate(videos):
        spans, scores = np.asarray(video.segments), np.asarray(video.scores)
        seconds = (spans + np.asarray(video.offsets, spans.dtype)[:, None, None]) / video.fps
        seconds, scores = seconds.reshape(-1, 2), scores.reshape(-1, scores.shape[-1])
        for label in range(1, scores.shape[1]):
            chosen = scores[:, label] > how.above
            if chosen.any():
                problems.append((seconds[chosen], scores[chosen, label]))
                places.append((number, label))
    if how.rule == "hard":
        indices = [hard_nms(spans, scores, how.overlap, how.top_k) for spans, scores in problems]
        kept = [Kept(index, scores[index]) for index, (_, scores) in zip(indices, problems, strict=True)]
    else:
        kept = soft_nms_many(problems, how.sigma, how.top_k, how.min_score, how.rule)
    parts: list[list[tuple[NDArray, NDArray, int]]] = [[] for _ in videos]
    for (number, label), (spans, scores), found in zip(places, problems, kept, strict=True):
        left = spans[found.which]
        if how.voting is not None:
            left = vote(left, spans, scores, how.voting)
        parts[number].append((left, found.scores, label))
    return [_joined(part, video, how) for part, video in zip(parts, videos, strict=True)]


def _joined(parts: Sequence[tuple[NDArray, NDArray, int]], video: Windows, how: PostProcess) -> Detections:
    if not parts:
        return Detections(np.empty((0, 2), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
    spans, scores = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
    labels = np.repeat([label for *_, label in parts], [len(found) for _, found, _ in parts])
    if how.cut and video.duration is not None:
        spans = spans.clip(0, video.duration)
        whole = spans[:, 1] > spans[:, 0]
        spans, scores, labels = spans[whole], scores[whole], labels[whole]
    order = slice(None) if how.rule == "afsd" else np.argsort(-scores, kind="stable")
    return Detections(spans[order], scores[order], labels[order])


def _as_arrays(segments: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    spans, values = (
        array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)
        for array in map(np.asarray, (segments, scores))
    )
    if values.ndim != 1 or spans.shape != (len(values), 2):
        raise ValueError(f"segments {spans.shape} and scores {values.shape}; they are (N, 2) and (N,)")
    return spans, values


def _solve(
    arrays: Sequence[tuple[NDArray, NDArray]], sigma: float, top_k: int, min_score: float, loses_last: bool
) -> list[Kept]:
    """Problems that fit into memory together, step by step: each step takes the best candidate of every problem."""
    widest = max(len(scores) for _, scores in arrays)
    kind = np.result_type(np.float32, *(array for pair in arrays for array in pair))
    start, end = np.zeros((2, len(arrays), widest), kind)
    score, origin = np.full_like(start, -1), np.tile(np.arange(widest), (len(arrays), 1))
    for row, (spans, scores) in enumerate(arrays):
        start[row, : len(scores)], end[row, : len(scores)] = spans.T
        score[row, : len(scores)] = scores
    # A score below min_score is out of the race for good, since scores only fall; so nothing need be marked.
    problem, rows, width = np.arange(len(arrays)), np.arange(len(arrays)), end - start
    low, high = np.empty_like(start), np.empty_like(start)
    nothing = np.empty(0, np.int64)
    taken: list[tuple[NDArray, NDArray, NDArray]] = [(nothing, nothing, np.empty(0, kind))]
    for step in range(min(top_k, widest)):
        if step % COMPACT == 0:
            alive = score >= min_score
            left = alive.sum(1)
            if left.max() <= 0.75 * score.shape[1] or not left.all():
                going = left > 0
                if not going.any():
                    break
                # Candidates that are left move to the front in their order: of equal scores the first must stay first.
                front = np.argsort(~alive[going], axis=1, kind="stable")[:, : left.max()]
                start, end, width, score, origin = (
                    np.take_along_axis(each[going], front, 1) for each in (start, end, width, score, origin)
                )
                problem, rows = problem[going], np.arange(len(front))
                low, high = np.empty_like(start), np.empty_like(start)
        best = score.argmax(1)
        value = score[rows, best]
        going = value >= min_score
        if loses_last:
            going &= (score >= min_score).sum(1) > 1
        taken.append((problem[going], origin[rows, best][going], value[going]))
        first, last = start[rows, best][:, None], end[rows, best][:, None]
        score[rows, best] = -1
        np.maximum(start, first, out=low)
        np.minimum(end, last, out=high)
        np.subtract(high, low, out=high)
        np.maximum(high, 0, out=high)
        np.add(width, np.maximum(last - first, kind.type(NARROWEST)), out=low)
        np.subtract(low, high, out=low)
        np.divide(high, low, out=high)
        np.multiply(high, high, out=high)
        np.divide(high, -sigma, out=high)
        np.exp(high, out=high)
        np.multiply(score, high, out=score)
    owner, index, value = (np.concatenate([each[place] for each in taken]) for place in range(3))
    order = np.lexsort((index, owner)) if loses_last else np.argsort(owner, kind="stable")
    cuts = np.searchsorted(owner[order], np.arange(1, len(arrays)))
    indices, values = np.split(index[order], cuts), np.split(value[order], cuts)
    return [Kept(*pair) for pair in zip(indices, values, strict=True)]
