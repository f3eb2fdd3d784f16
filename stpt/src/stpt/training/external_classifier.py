"""Names for ActivityNet's detections, which are told from the background only, by a classifier of whole videos.

The published figures take the scores of CUHK's entry of 2017. Without such scores mAP is that of one class "action":
`stpt score` prints both, and says which is which.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paperkit.errors import UserError
from stpt.training.annotations import bare, read_large_json
from stpt.training.found_actions import Found, Results


@dataclass(frozen=True)
class Classifier:
    """Scores of whole videos. Attributes: classes: their names (C). scores: (C,) by the video's bare name."""

    classes: tuple[str, ...]
    scores: Mapping[str, NDArray[np.float64]]


def read_classifier(path: str | Path) -> Classifier:
    """CUHK's form: {"class": [NAME, ...], "results": {VIDEO: [score of each class]}}.

    Raises:
        UserError: unreadable, another form, or scores that are not as many as the classes.
    """
    content = read_large_json(path, "file of a classifier's scores")
    classes, results = (content.get(key) if isinstance(content, dict) else None for key in ("class", "results"))
    if not (isinstance(classes, list) and classes and isinstance(results, dict)):
        raise UserError(
            f"{path} is no file of a classifier's scores: {{'class': [NAME], 'results': {{VIDEO: [SCORE]}}}}"
        )
    scores: dict[str, NDArray[np.float64]] = {}
    for name, values in results.items():
        try:
            row = np.array(values, np.float64).reshape(-1)
        except (TypeError, ValueError, OverflowError):
            row = np.empty(0)
        if len(row) != len(classes) or not np.isfinite(row).all():
            raise UserError(f"{path}: {name} has no {len(classes)} scores, one for each class")
        scores[bare(name)] = row
    return Classifier(tuple(map(str, classes)), scores)


def name_by_classifier(results: Results, classifier: Classifier, top: int = 1) -> dict[str, Found]:
    """Every detection once under each of the video's `top` best classes, its score multiplied by the class's.

    Raises:
        UserError: a video with detections that the classifier has no scores of.
    """
    lacking = [name for name, found in results.items() if len(found.labels) and bare(name) not in classifier.scores]
    if lacking:
        raise UserError(f"the classifier has no scores of {len(lacking)} videos with detections, such as {lacking[0]}")
    named: dict[str, Found] = {}
    for name, found in results.items():
        if not found.labels:
            named[name] = found
            continue
        scores = classifier.scores[bare(name)]
        best = np.argsort(-scores, kind="stable")[:top]
        labels = tuple(classifier.classes[number] for number in best for _ in found.labels)
        weighted = (scores[best, None] * found.scores).reshape(-1)
        named[name] = Found(np.tile(found.segments, (len(best), 1)), weighted, labels)
    return named
