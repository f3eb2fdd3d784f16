"""Detections of many videos as a file, in the JSON form of ActivityNet's and THUMOS14's evaluators.

{"version", "external_data", "results": {NAME: [{"label", "score", "segment": [start s, end s]}]}}
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paperkit.errors import UserError
from paperkit.files.atomic import write_atomic
from stpt.method.soft_nms import Detections
from stpt.training.annotations import read_large_json, segment_of


@dataclass(frozen=True)
class Found:
    """What was found in one video. Attributes: segments (n, 2) in seconds, scores (n,), labels (n names)."""

    segments: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: tuple[str, ...]


MOST = 1e30
"""Size of a score, above which it is none."""
Results = Mapping[str, Found]
"""What was found, by the names of the videos."""


def named(detections: Detections, classes: tuple[str, ...] | list[str]) -> Found:
    """Detections with the names of their classes: number i is `classes[i - 1]`."""
    labels = tuple(classes[number - 1] for number in detections.labels)
    return Found(detections.segments.astype(np.float64), detections.scores.astype(np.float64), labels)


def write_results(path: str | Path, results: Results, version: str, external: str = "") -> None:
    """Write the file, whole or not at all.

    Args:
        version: of the data set, such as THUMOS14 or ActivityNet-v1.3.
        external: what besides the video named the actions, such as the file of a classifier.
    """
    content = {
        name: [
            {"label": label, "score": score, "segment": span}
            for label, score, span in zip(
                found.labels, found.scores.tolist(), found.segments.tolist(), strict=True
            )
        ]
        for name, found in results.items()
    }  # fmt: skip
    told = {"used": bool(external), "details": external}
    write_atomic(path, json.dumps({"version": version, "external_data": told, "results": content}) + "\n")


def read_results(path: str | Path) -> dict[str, Found]:
    """What `write_results` or another evaluator's tool wrote.

    Raises:
        UserError: unreadable, another form, or an entry that is no detection.
    """
    content = read_large_json(path, "file of detections")
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        raise UserError(f"{path} is no file of detections: {{'results': {{NAME: [{{'label', 'score', 'segment'}}]}}}}")
    found: dict[str, Found] = {}
    for name, entries in results.items():
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{path}: {name} has no list of detections")
        spans = [segment_of(entry.get("segment"), f"{path}: {name}, detection {i}") for i, entry in _counted(entries)]
        scores = [_score(entry.get("score"), f"{path}: {name}, detection {i}") for i, entry in _counted(entries)]
        labels = tuple(entry.get("label") for entry in entries)
        if not all(isinstance(label, str) for label in labels):
            raise UserError(f"{path}: {name} has a detection without a label, the name of a class")
        found[name] = Found(np.array(spans).reshape(-1, 2), np.array(scores), labels)
    return found


def _counted(entries: list[dict]) -> "enumerate[dict]":
    return enumerate(entries, 1)


def _score(value: object, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= MOST:
        raise UserError(f"{where} has the score {str(value)[:40]}; it is a number")
    return float(value)
