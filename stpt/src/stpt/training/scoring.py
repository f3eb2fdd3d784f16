"""Detections of many videos held against their annotations: what both mean by numbers, and the figures of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paperkit.errors import UserError
from stpt.method.detection_map import (
    ACTIVITYNET,
    THUMOS14,
    Absent,
    DetectionMap,
    Instances,
    average_recall,
    mean_average_precision,
)
from stpt.models.labels import THUMOS14 as THUMOS14_CLASSES
from stpt.training.annotations import Annotations, bare, read_annotations
from stpt.training.found_actions import Results
from stpt.training.truth_policies import POLICIES, apply_policy

PROPOSALS = 100
"""Detections a video of AR@AN."""


@dataclass(frozen=True)
class Truth:
    """Annotations of the subset that counts.

    Attributes:
        annotations: by the policy.
        ignored: bare names of videos whose detections do not count: those of other subsets, and those left out.
        absent: what detections in videos without any action are.
    """

    annotations: Annotations
    ignored: frozenset[str]
    absent: Absent


def read_truth(path: str, subset: str | None, policy: str, classes: Sequence[str] | None = None) -> Truth:
    """The truth of a file, as it is written: faults are kept.

    Raises:
        UserError: as `read_annotations`, an unknown policy, or a subset without any action.
    """
    if policy not in POLICIES:
        raise UserError(f"policy {policy!r} is none of {', '.join(POLICIES)}")
    chosen = POLICIES[policy]
    everything = read_annotations(path, classes=classes, faults="keep")
    annotations = apply_policy(read_annotations(path, subset, classes, "keep"), chosen)
    if not any(video.actions for video in annotations.videos.values()):
        raise UserError(f"{path} has no action{f' in the subset {subset}' if subset else ''}, so nothing can be scored")
    counted = {bare(name) for name in annotations.videos}
    others = {bare(name) for name in everything.videos} | set(chosen.left_out)
    return Truth(annotations, frozenset(others - counted), chosen.absent)


@dataclass(frozen=True)
class Joined:
    """Both sides by numbers: a video's place among all names, a label's place in `classes`.

    Attributes:
        classes: names.
        unknown: detections left out by their label, which is no class.
        strangers: videos with detections that no annotation names.
        silent: videos with actions and without any detection.
    """

    truth: Instances
    found: Instances
    classes: tuple[str, ...]
    unknown: Counter[str]
    strangers: tuple[str, ...]
    silent: tuple[str, ...]


def join(results: Results, truth: Truth, one_class: bool = False) -> Joined:
    """Results and truth by the same numbers; a `v_` before names does not tell videos apart.

    Args:
        one_class: all actions and all detections are of one class, whatever they are called.
    """
    videos, classes = truth.annotations.videos, truth.annotations.classes
    numbers = {bare(name): number for number, name in enumerate(videos)}
    kept = {bare(name): found for name, found in results.items() if bare(name) not in truth.ignored}
    strangers = tuple(name for name in kept if name not in numbers)
    for name in strangers:
        numbers[name] = len(numbers)
    index = {label: number for number, label in enumerate(classes)}
    actions = [
        (numbers[bare(name)], index[action.label], action.start, action.end)
        for name, video in videos.items()
        for action in video.actions
    ]
    table = np.array(actions, np.float64).reshape(-1, 4)
    true = Instances(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2:])
    places = np.array([numbers[name] for name, found in kept.items() for _ in found.labels], np.int64)
    labels = np.array([index.get(label, -1) for found in kept.values() for label in found.labels], np.int64)
    unknown = Counter(label for found in kept.values() for label in found.labels if label not in index)
    spans = np.concatenate([np.empty((0, 2)), *(found.segments for found in kept.values())])
    scores = np.concatenate([np.empty(0), *(found.scores for found in kept.values())])
    given = Instances(places, labels, spans, scores)
    if one_class:
        true, given, classes, unknown = true.as_one_class(), given.as_one_class(), ("action",), Counter()
    else:
        given = given.only(labels >= 0)
    seen = set(given.videos.tolist())
    silent = tuple(name for name, video in videos.items() if video.actions and numbers[bare(name)] not in seen)
    return Joined(true, given, classes, unknown, strangers, silent)


def usual_thresholds(classes: Sequence[str]) -> tuple[float, ...]:
    """THUMOS14's for its classes, ActivityNet's for all others."""
    return THUMOS14 if set(classes) <= THUMOS14_CLASSES.keys() else ACTIVITYNET


def figures(joined: Joined, thresholds: Sequence[float], absent: Absent) -> tuple[DetectionMap, dict[str, float]]:
    """The mAP, and by name in %: `mAP@0.5` and so on, `mAP` their mean, `AR@100`, `AR-AN` (mean of AR@1 to AR@100)."""
    result = mean_average_precision(joined.found, joined.truth, thresholds, absent)
    values = {f"mAP@{threshold:g}": 100 * float(mean) for threshold, mean in zip(thresholds, result.mean, strict=True)}
    recall = 100 * average_recall(joined.found, joined.truth, PROPOSALS)
    return result, {**values, "mAP": 100 * result.average, "AR@100": float(recall[-1]), "AR-AN": float(recall.mean())}
