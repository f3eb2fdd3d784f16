"""Mean average precision of detections along time, as ActivityNet's evaluator counts it, without loops over detections.

Per class and tIoU threshold: detections in the order of falling scores (of equal ones the last comes first); each takes
the action of its video and class that it overlaps most among those not yet taken, if that overlap reaches the
threshold, else it is a false positive. The average precision is the area below the precision made monotone.

A detection that finds its favourite taken tries the next. All detections choosing by turns is what they agree on when
all ask at once, each action answers the best ranked, and who was turned away asks the next: that takes few rounds.

Shapes: N detections, M actions, T thresholds, C classes.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

THUMOS14 = (0.3, 0.4, 0.5, 0.6, 0.7)
ACTIVITYNET = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
TOGETHER = 1 << 21
"""Pairs of a detection and an action whose overlap is computed at a time."""

Absent = Literal["dropped", "counted"]


@dataclass(frozen=True)
class Instances:
    """Actions or detections.

    Attributes:
        videos, labels: numbers (N,). segments: (N, 2) as (start, end). scores: (N,) of detections; None for actions.
    """

    videos: NDArray[np.int64]
    labels: NDArray[np.int64]
    segments: NDArray[np.float64]
    scores: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, chosen: NDArray) -> "Instances":
        """Some of them, by a mask or by numbers."""
        scores = None if self.scores is None else self.scores[chosen]
        return Instances(self.videos[chosen], self.labels[chosen], self.segments[chosen], scores)

    def as_one_class(self) -> "Instances":
        """The same with label 0 for all: what is found, whatever it is called."""
        return Instances(self.videos, np.zeros_like(self.labels), self.segments, self.scores)


@dataclass(frozen=True)
class DetectionMap:
    """Attributes: thresholds (T,). classes: labels that have an action (C,), ascending. ap: (T, C), in 0..1."""

    thresholds: NDArray[np.float64]
    classes: NDArray[np.int64]
    ap: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """mAP of each threshold (T,)."""
        return self.ap.mean(1)

    @property
    def average(self) -> float:
        """Mean of the mAP over all thresholds."""
        return float(self.mean.mean())


@dataclass(frozen=True)
class Pairs:
    """Detections and actions of one video that overlap: their numbers and tIoU, by rank, then by falling tIoU."""

    found: NDArray[np.int64]
    truth: NDArray[np.int64]
    tiou: NDArray[np.float64]


def mean_average_precision(
    found: Instances, truth: Instances, thresholds: Sequence[float] = THUMOS14, absent: Absent = "dropped"
) -> DetectionMap:
    """Average precision of every class that has an action; 0 where nothing is found of it.

    Args:
        found: detections; those of labels without any action are left out.
        truth: actions of the subset.
        absent: what detections in videos without any action are: `dropped` as in AFSD's evaluator, or `counted` as
            false positives as in OpenTAD's.

    Raises:
        ValueError: no action, or no threshold.
    """
    if not len(truth) or not len(thresholds):
        raise ValueError("mean average precision needs actions and thresholds")
    classes, per_class = np.unique(truth.labels, return_counts=True)
    ap = np.zeros((len(thresholds), len(classes)))
    for column, (_, precision, hits) in enumerate(_curves(found, truth, thresholds, absent)):
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        ap[:, column] = (best * hits).sum(1) / per_class[column]
    return DetectionMap(np.asarray(thresholds, np.float64), classes, ap)


def precision_recall(
    found: Instances, truth: Instances, threshold: float, absent: Absent = "dropped"
) -> dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """(recall, precision) along falling scores for each class that has an action; precision as measured, not raised."""
    labels, curves = np.unique(truth.labels).tolist(), _curves(found, truth, [threshold], absent)
    return {label: (recall[0], precision[0]) for label, (recall, precision, _) in zip(labels, curves, strict=True)}


def average_recall(
    found: Instances, truth: Instances, most: int = 100, thresholds: Sequence[float] = ACTIVITYNET
) -> NDArray[np.float64]:
    """AR@AN without regard to classes: for 1, 2, ... `most` detections a video, the share of actions that one of them
    overlaps enough, averaged over the thresholds (most,).
    """
    found, truth = found.as_one_class(), truth.as_one_class()
    rank = ranks(found)
    by_video = np.lexsort((rank, found.videos))
    _, first, counts = np.unique(found.videos[by_video], return_index=True, return_counts=True)
    place = np.empty(len(found), np.int64)
    place[by_video] = np.arange(len(found)) - np.repeat(first, counts)
    found, rank = found.only(place < most), rank[place < most]
    near = pairs(found, truth, rank, min(thresholds))
    place, recall = place[place < most], np.zeros(most)
    for threshold in thresholds:
        enough = near.tiou >= threshold
        earliest = np.full(len(truth), most)
        np.minimum.at(earliest, near.truth[enough], place[near.found[enough]])
        recall += np.bincount(earliest, minlength=most + 1)[:most].cumsum() / len(truth) / len(thresholds)
    return recall


def ranks(found: Instances) -> NDArray[np.int64]:
    """Place of each detection by falling score; of equal scores the last of the input comes first (N,)."""
    assert found.scores is not None
    place = np.empty(len(found), np.int64)
    place[np.argsort(found.scores, kind="stable")[::-1]] = np.arange(len(found))
    return place


def pairs(found: Instances, truth: Instances, rank: NDArray[np.int64], least: float, same_class: bool = True) -> Pairs:
    """All pairs of one video (and class, if `same_class`) with a tIoU of at least `least`."""
    group_found, group_truth = _groups(found, truth, same_class)
    order = np.argsort(group_truth, kind="stable")
    first = np.searchsorted(group_truth[order], group_found, "left")
    count = np.searchsorted(group_truth[order], group_found, "right") - first
    asking = np.flatnonzero(count)
    parts: list[tuple[NDArray, NDArray, NDArray]] = []
    ends = count[asking].cumsum()
    for start, stop in _pieces(ends):
        some = asking[start:stop]
        mine = np.repeat(some, count[some])
        inside = np.arange(len(mine)) - np.repeat(count[some].cumsum() - count[some], count[some])
        theirs = order[first[mine] + inside]
        tiou = tiou_of(found.segments[mine], truth.segments[theirs])
        near = tiou >= least
        parts.append((mine[near], theirs[near], tiou[near]))
    if not parts:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    mine, theirs, tiou = (np.concatenate([part[place] for part in parts]) for place in range(3))
    by_rank = np.lexsort((-theirs, -tiou, rank[mine]))
    return Pairs(mine[by_rank], theirs[by_rank], tiou[by_rank])


def match(near: Pairs, thresholds: Sequence[float], detections: int, actions: int) -> NDArray[np.int64]:
    """Number of the action that each detection takes, -1 for none (T, N)."""
    taken = np.full((len(thresholds), detections), -1, np.int64)
    for row, threshold in enumerate(thresholds):
        enough = near.tiou >= threshold
        mine, theirs = near.found[enough], near.truth[enough]
        if not len(mine):
            continue
        first = np.flatnonzero(np.diff(mine, prepend=-1))
        last = np.append(first[1:], len(mine))
        asks, who = first.copy(), mine[first]
        while True:
            holder = np.full(actions, -1, np.int64)
            # Who stands later in this list writes last, so from the end on: the best ranked is what stays.
            holder[theirs[asks[::-1]]] = who[::-1]
            refused = holder[theirs[asks]] != who
            if not refused.any():
                break
            asks[refused] += 1
            going = asks < last
            asks, last, who = asks[going], last[going], who[going]
        taken[row, who] = theirs[asks]
    return taken


def tiou_of(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Temporal intersection over union of pairs of segments, (N, 2) twice; 0 where neither has a length."""
    common = np.maximum(np.minimum(one[:, 1], other[:, 1]) - np.maximum(one[:, 0], other[:, 0]), 0)
    union = (other[:, 1] - other[:, 0]) + (one[:, 1] - one[:, 0]) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _groups(found: Instances, truth: Instances, same_class: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One number for each video, or for each class of a video, the same on both sides."""
    both = np.concatenate([found.videos, truth.videos])
    if same_class:
        labels = np.concatenate([found.labels, truth.labels])
        if len(labels):
            low = labels.min()
            both = np.unique(both, return_inverse=True)[1] * (labels.max() - low + 1) + labels - low
    return both[: len(found)], both[len(found) :]


def _pieces(ends: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ranges of detections with about `TOGETHER` pairs each, from the running sum of their pairs."""
    if not len(ends):
        return []
    cuts = np.searchsorted(ends, np.arange(TOGETHER, ends[-1], TOGETHER)).tolist()
    bounds = sorted({0, *cuts, len(ends)})
    return list(itertools.pairwise(bounds))


def _curves(
    found: Instances, truth: Instances, thresholds: Sequence[float], absent: Absent
) -> list[tuple[NDArray, NDArray, NDArray]]:
    """(recall, precision, hits) of each class that has an action, along its ranks, (T, n) each."""
    classes, per_class = np.unique(truth.labels, return_counts=True)
    keep = np.isin(found.labels, classes)
    if absent == "dropped":
        keep &= np.isin(found.videos, truth.videos)
    found = found.only(keep)
    rank = ranks(found)
    hit = match(pairs(found, truth, rank, min(thresholds)), thresholds, len(found), len(truth)) >= 0
    order = np.lexsort((rank, found.labels))
    bounds = np.searchsorted(found.labels[order], np.stack([classes, classes + 1], 1))
    curves = []
    for (start, stop), total in zip(bounds, per_class, strict=True):
        hits = hit[:, order[start:stop]]
        true = hits.cumsum(1)
        curves.append((true / total, true / np.arange(1, stop - start + 1), hits))
    return curves
