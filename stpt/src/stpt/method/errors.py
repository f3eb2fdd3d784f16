"""What kind of errors detections are, after DETAD (Alwassel et al., "Diagnosing Error in Temporal Action Detectors",
ECCV 2018, section 4): the false positives among the best detections, and what mAP would be without each kind.

A detection that takes an action is a true positive. Else, at a threshold a:
- double detection: tIoU >= a with an action of its class, which a better ranked one has taken;
- wrong label: tIoU >= a with an action of another class;
- localization: tIoU in [0.1, a) with an action of its class;
- confusion: tIoU in [0.1, a) with an action of another class;
- background: no action near.
The first that fits counts. Shapes: N detections, S slots.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stpt.method.detection_map import Instances, by_score, match, mean_average_precision, pairs, place_in_group

KINDS = ("true positive", "double detection", "wrong label", "localization", "confusion", "background")
LEAST = 0.1
"""Least tIoU of a detection that is near an action at all."""
SLOTS = 10
"""How many times the number of actions of a class is looked at."""


@dataclass(frozen=True)
class ErrorBreakdown:
    """The kinds of all detections at one threshold.

    Attributes:
        threshold: a.
        counts: detections by slot and kind (S, 6): slot s holds, of each class with G actions, ranks s G to s G + G.
        gains: what mAP at the threshold gains when all errors of a kind are left out, in 0..1.
        missed: actions that nothing takes, of all ranks.
        actions: all of them.
    """

    threshold: float
    counts: NDArray[np.int64]
    gains: dict[str, float]
    missed: int
    actions: int

    @property
    def shares(self) -> NDArray[np.float64]:
        """Share of each kind in each slot (S, 6); 0 in a slot without detections."""
        return self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1)


def kinds_of(found: Instances, truth: Instances, threshold: float) -> NDArray[np.int64]:
    """Place in KINDS of each detection (N,); they stand in the order of `by_score`."""
    near = pairs(found, truth, LEAST, same_class=False)
    same = found.labels[near.found] == truth.labels[near.truth]
    own, other = np.zeros((2, len(found)))
    np.maximum.at(own, near.found[same], near.tiou[same])
    np.maximum.at(other, near.found[~same], near.tiou[~same])
    taken = np.zeros(len(found), np.bool_)
    taken[match(pairs(found, truth, threshold), [threshold], len(truth))[0][0]] = True
    return np.select([taken, own >= threshold, other >= threshold, own >= LEAST, other >= LEAST], range(5), 5)


def error_breakdown(found: Instances, truth: Instances, threshold: float = 0.5) -> ErrorBreakdown:
    """Kinds by rank, and the gain in mAP without each.

    Raises:
        ValueError: no action, or a threshold that is not above 0.1.
    """
    if not len(truth) or threshold <= LEAST:
        raise ValueError(f"{len(truth)} actions, threshold {threshold}; it needs some and one above {LEAST}")
    classes, per_class = np.unique(truth.labels, return_counts=True)
    found = by_score(found.only(np.isin(found.labels, classes)))
    kinds, column = kinds_of(found, truth, threshold), np.searchsorted(classes, found.labels)
    slot = place_in_group(column, len(classes)) // per_class[column]
    seen = slot < SLOTS
    counts = np.bincount(slot[seen] * len(KINDS) + kinds[seen], minlength=SLOTS * len(KINDS))
    # In this order equal scores have their ranks already: an order that falls strictly keeps them.
    found = replace(found, scores=-np.arange(len(found), dtype=np.float64))
    whole = mean_average_precision(found, truth, [threshold]).average
    gains = {
        name: mean_average_precision(found.only(kinds != number), truth, [threshold]).average - whole
        for number, name in enumerate(KINDS[1:], 1)
    }
    missed = len(truth) - int((kinds == 0).sum())
    return ErrorBreakdown(threshold, counts.reshape(SLOTS, len(KINDS)), gains, missed, len(truth))
