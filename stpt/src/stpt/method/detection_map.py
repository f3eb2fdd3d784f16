"""Mean average precision of detections along time, as ActivityNet's evaluator counts it, without loops over detections.

Per class and tIoU threshold: detections in the order of falling scores (of equal ones the last comes first); each takes
the action of its video and class that it overlaps most among those not yet taken, if that overlap reaches the
threshold, else it is a false positive. The average precision is the area below the precision made monotone.

A detection that finds its favourite taken tries the next. All detections choosing by turns is what they agree on when
all ask at once, each action answers the best ranked, and who was turned away asks the next: that takes few rounds.

Shapes: N detections, M actions, T thresholds, C classes.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

THUMOS14 = (0.3, 0.4, 0.5, 0.6, 0.7)
ACTIVITYNET = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
TOGETHER = 1 << 21
"""Pairs of a detection and an action whose overlap is computed at a time."""
WIDEST = 1 << 20
"""Between the lowest and the highest number that are looked up in a table."""

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
        numbers = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen
        scores = None if self.scores is None else self.scores[numbers]
        segments = self.segments.take(numbers, 0)  # brackets take three times as long for pairs of numbers
        return Instances(self.videos[numbers], self.labels[numbers], segments, scores)

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
    """Detections and actions of one video that overlap: their numbers and tIoU, in the order in which they ask.

    Detection after detection, of each the action first that it overlaps most; of equal overlaps the last action.
    """

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
        thresholds: of tIoU, each above 0.
        absent: what detections in videos without any action are: `dropped` as in AFSD's evaluator, or `counted` as
            false positives as in OpenTAD's.

    Raises:
        ValueError: no action, or no threshold.
    """
    if not len(truth) or not len(thresholds):
        raise ValueError("mean average precision needs actions and thresholds")
    classes = np.unique(truth.labels)
    ap = np.zeros((len(thresholds), len(classes)))
    for column, (mine, actions) in enumerate(_by_class(found, truth, classes, absent)):
        near = pairs(mine, actions, min(thresholds), same_class=False)  # they are of one
        for row, (who, _) in enumerate(match(near, thresholds, len(actions))):
            # The precision made monotone has its corners at the hits, so nothing else need be looked at.
            precision = np.arange(1, len(who) + 1) / (who + 1)
            ap[row, column] = np.maximum.accumulate(precision[::-1]).sum() / len(actions)
    return DetectionMap(np.asarray(thresholds, np.float64), classes, ap)


def precision_recall(
    found: Instances, truth: Instances, threshold: float, absent: Absent = "dropped"
) -> dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """(recall, precision) along falling scores for each class that has an action; precision as measured, not raised."""
    classes, curves = np.unique(truth.labels), {}
    for label, (mine, actions) in zip(classes.tolist(), _by_class(found, truth, classes, absent), strict=True):
        hit = np.zeros(len(mine), np.bool_)
        hit[match(pairs(mine, actions, threshold), [threshold], len(actions))[0][0]] = True
        true = hit.cumsum()
        curves[label] = (true / len(actions), true / np.arange(1, len(true) + 1))
    return curves


def average_recall(
    found: Instances, truth: Instances, most: int = 100, thresholds: Sequence[float] = ACTIVITYNET
) -> NDArray[np.float64]:
    """AR@AN without regard to classes: for 1, 2, ... `most` detections a video, the share of actions that one of them
    overlaps enough, averaged over the thresholds (most,).
    """
    found, truth = by_score(found.as_one_class()), truth.as_one_class()
    videos, number = np.unique(found.videos, return_inverse=True)
    place = place_in_group(number, len(videos))
    found, place = found.only(place < most), place[place < most]
    near, recall = pairs(found, truth, min(thresholds)), np.zeros(most)
    for threshold in thresholds:
        enough = near.tiou >= threshold
        earliest = np.full(len(truth), most)
        np.minimum.at(earliest, near.truth[enough], place[near.found[enough]])
        recall += np.bincount(earliest, minlength=most + 1)[:most].cumsum() / len(truth) / len(thresholds)
    return recall


def by_score(found: Instances) -> Instances:
    """Detections in the order of falling scores; of equal scores the last of the input comes first."""
    assert found.scores is not None
    return found.only(_ranks(found.scores))


def _ranks(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """The order of `by_score`."""
    order = np.argsort(scores)
    ranked = scores.take(order)
    if (ranked[1:] == ranked[:-1]).any():  # a sort that keeps the order of equal ones takes five times as long
        order = np.argsort(scores, kind="stable")
    return order[::-1]


def place_in_group(group: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """How many before each are of its group, 0 to `groups` - 1 (N,)."""
    order, counts = _grouped(group, groups), np.bincount(group, minlength=groups)
    place = np.empty(len(group), np.int64)
    place[order] = np.arange(len(group)) - np.repeat(counts.cumsum() - counts, counts)
    return place


def pairs(found: Instances, truth: Instances, least: float, same_class: bool = True) -> Pairs:
    """All pairs of one video (and class, if `same_class`) with a tIoU of at least `least`, which is above 0.

    Actions lie one group behind the other on one line, so that those that overlap a detection are a range of it.
    """
    group_found, group_truth = _groups(found, truth, same_class)
    low, high = (truth.segments.min(), truth.segments.max()) if len(truth) else (0.0, 0.0)
    span = 2 * (high - low) + 1
    order = np.lexsort((truth.segments[:, 0], group_truth))
    starts, ends = (group_truth * span + truth.segments.T - low)[:, order]
    asks = group_found * span + (found.segments.clip(low, high).T - low)
    first = _places(np.maximum.accumulate(ends), asks[0], "right")
    count = np.maximum(_places(starts, asks[1], "left") - first, 0)
    parts: list[tuple[NDArray, NDArray, NDArray]] = []
    asking = np.flatnonzero(count)
    for start, stop in _pieces(count[asking].cumsum()):
        some = asking[start:stop]
        many = count.take(some)
        mine = np.repeat(some, many)
        theirs = order.take(np.arange(len(mine)) + np.repeat(first.take(some) - (many.cumsum() - many), many))
        tiou = tiou_of(found.segments.take(mine, 0), truth.segments.take(theirs, 0))
        near = np.flatnonzero(tiou >= least)
        parts.append((mine.take(near), theirs.take(near), tiou.take(near)))
    if not parts:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    mine, theirs, tiou = (np.concatenate([part[place] for part in parts]) for place in range(3))
    again = ~_changes(mine)  # of a detection that has an action before this one already
    again[:-1] |= again[1:]
    several = np.flatnonzero(again)
    best = several[_preferences(mine[several], theirs[several], tiou[several])]
    theirs[several], tiou[several] = theirs[best], tiou[best]
    return Pairs(mine, theirs, tiou)


def _preferences(mine: NDArray[np.int64], theirs: NDArray[np.int64], tiou: NDArray[np.float64]) -> NDArray[np.int64]:
    """The order of pairs, which come detection after detection, by falling overlap; of equal ones the last action."""
    order = np.argsort(-tiou)
    number = _changes(mine).cumsum() - 1
    order = order[_grouped(number[order], len(number))]
    who, overlap = mine[order], tiou[order]
    if ((who[1:] == who[:-1]) & (overlap[1:] == overlap[:-1])).any():  # as in `_ranks`
        order = np.lexsort((-theirs, -tiou, mine))
    return order


def match(near: Pairs, thresholds: Sequence[float], actions: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For each threshold the detections that take an action, and the actions that they take.

    Args:
        near: pairs of detections in the order of their ranks.
        actions: M.
    """
    taken = []
    for threshold in thresholds:
        enough = np.flatnonzero(near.tiou >= threshold)
        mine, theirs = near.found.take(enough), near.truth.take(enough)
        asks = np.flatnonzero(_changes(mine))
        last, who = np.append(asks[1:], len(mine))[: len(asks)], mine[asks]
        while len(asks):
            holder = np.full(actions, -1, np.int64)
            # Who stands later in this list writes last, so from the end on: the best ranked is what stays.
            holder[theirs[asks[::-1]]] = who[::-1]
            refused = holder[theirs[asks]] != who
            if not refused.any():
                break
            asks[refused] += 1
            going = asks < last
            asks, last, who = asks[going], last[going], who[going]
        taken.append((who, theirs[asks]))
    return taken


def tiou_of(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Temporal intersection over union of pairs of segments, (N, 2) twice; 0 where neither has a length."""
    common = np.maximum(np.minimum(one[:, 1], other[:, 1]) - np.maximum(one[:, 0], other[:, 0]), 0)
    union = (other[:, 1] - other[:, 0]) + (one[:, 1] - one[:, 0]) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _by_class(
    found: Instances, truth: Instances, classes: NDArray[np.int64], absent: Absent
) -> Iterator[tuple[Instances, Instances]]:
    """Detections, by falling score, and actions of each class; those in videos without any action dropped if so asked.

    Class by class the arrays are small enough to stay in the processor's cache.
    """
    assert found.scores is not None
    column = _numbered(found.labels, classes)
    if absent == "dropped":
        column = np.where(_numbered(found.videos, np.unique(truth.videos)) >= 0, column, -1)
    order, true_order = _grouped(column, len(classes)), np.argsort(truth.labels, kind="stable")
    numbers = np.arange(len(classes))
    bounds = np.searchsorted(column[order], np.stack([numbers, numbers + 1], 1))
    true_bounds = np.searchsorted(truth.labels[true_order], np.stack([classes, classes + 1], 1))
    for (start, stop), (first, last) in zip(bounds, true_bounds, strict=True):
        mine = order[start:stop]
        yield found.only(mine[_ranks(found.scores[mine])]), truth.only(true_order[first:last])


def _grouped(group: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """The order that brings each group together and keeps the order inside; short numbers sort in linear time."""
    return np.argsort(group.astype(np.int16) if groups < 1 << 15 else group, kind="stable")


def _groups(found: Instances, truth: Instances, same_class: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One number for each video of the truth, or for each of its classes; detections elsewhere have the number -1."""
    videos, classes = np.unique(truth.videos), np.unique(truth.labels)
    of_found, of_truth = _numbered(found.videos, videos), _numbered(truth.videos, videos)
    if not same_class:
        return of_found, of_truth
    labels, true_labels = _numbered(found.labels, classes), _numbered(truth.labels, classes)
    known = (of_found >= 0) & (labels >= 0)
    return np.where(known, of_found * len(classes) + labels, -1), of_truth * len(classes) + true_labels


def _numbered(values: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of each value in an ascending list, -1 if it is not there."""
    if not len(among):
        return np.full(len(values), -1)
    low, span = among[0], among[-1] - among[0] + 1
    if span <= WIDEST:
        table = np.full(span + 2, -1)
        table[among - low + 1] = np.arange(len(among))
        return table[(values - low + 1).clip(0, span + 1)]
    place = np.minimum(np.searchsorted(among, values), len(among) - 1)
    return np.where(among[place] == values, place, -1)


def _places(line: NDArray[np.float64], asks: NDArray[np.float64], side: Literal["left", "right"]) -> NDArray[np.int64]:
    """`np.searchsorted`; one that asks in order is several times as fast."""
    order = np.argsort(asks)
    places = np.empty(len(asks), np.int64)
    places[order] = np.searchsorted(line, asks[order], side)
    return places


def _changes(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a value differs from the one before; the first does."""
    changes = np.ones(len(values), np.bool_)
    changes[1:] = values[1:] != values[:-1]
    return changes


def _pieces(ends: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ranges of detections with about `TOGETHER` pairs each, from the running sum of their pairs."""
    if not len(ends):
        return []
    cuts = np.searchsorted(ends, np.arange(TOGETHER, ends[-1], TOGETHER)).tolist()
    bounds = sorted({0, *cuts, len(ends)})
    return list(itertools.pairwise(bounds))
