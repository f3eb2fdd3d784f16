"""Detections of a video file, named and in the form of ActivityNet's result files.

Seconds of the video throughout.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from paperkit.files.atomic import write_atomic
from stpt.deployment.searching import Drift, SearchedVideo
from stpt.figures.timeline import Bar
from stpt.method.soft_nms import ACTIVITYNET, PostProcess, Windows, detections
from stpt.models.labels import ANY_ACTION, THUMOS14
from stpt.models.stpt import STPT


def detect(
    video: SearchedVideo, how: PostProcess, advance: Callable[[int], object] = lambda windows: None
) -> tuple[list[Bar], Drift | None]:
    """All detections of a video, the highest score first, cut to the video; and the drift, see `SearchedVideo.cells`.

    Args:
        video: opened with the network. how: from cells to detections. advance: told of windows that are done.
    """
    cells, info = video.cells(how.above, advance), video.video.info
    windows = Windows(cells.segments.numpy(), cells.scores.numpy(), video.offsets, info.sample_fps, info.duration)
    found, names = detections([windows], how)[0], class_names(video.network)
    rows = zip(found.segments.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
    return [Bar(start, end, names[label - 1], score) for (start, end), label, score in rows], cells.drift


def class_names(network: STPT) -> list[str]:
    """Names of the classes from 1 on: the network's own, those of its data set, or numbers."""
    if network.settings["classes"]:
        return list(network.settings["classes"])
    count = network.settings["detector"].get("num_classes", 21) - 1
    known = {len(THUMOS14): list(THUMOS14), 1: [ANY_ACTION]}
    return known.get(count, [f"class {number}" for number in range(1, count + 1)])


def usual(network: STPT) -> PostProcess:
    """The setting of the data set that the network's variant was made for."""
    return ACTIVITYNET if network.settings["detector"].get("variant", "thumos") == "activitynet" else PostProcess()


def write_results(path: str | PathLike[str], found: Mapping[str, Sequence[Bar]], about: Mapping[str, Any]) -> None:
    """Write detections of several videos as `stpt score` and ActivityNet's evaluators read them.

    Args:
        path: of the JSON file. found: by the video's name. about: kept under "external_data".
    """
    results = {
        name: [{"label": bar.label, "score": bar.score, "segment": [bar.start, bar.end]} for bar in bars]
        for name, bars in found.items()
    }
    content = {"version": "VERSION 1.3", "results": results, "external_data": dict(about)}
    write_atomic(Path(path), json.dumps(content, indent=1) + "\n")
