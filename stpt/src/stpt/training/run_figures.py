"""Pictures of detections beside their truth: timelines of single videos, and figures over all of them."""

from pathlib import Path
from typing import Any

from paperkit.results.report import save_figure
from stpt.figures.ap_heat_map import draw_ap_heat_map
from stpt.figures.error_breakdown import draw_error_breakdown
from stpt.figures.precision_recall import draw_precision_recall
from stpt.figures.timeline import Bar, draw_timeline
from stpt.method.detection_map import precision_recall
from stpt.method.errors import error_breakdown
from stpt.models.labels import ANY_ACTION
from stpt.training.annotations import bare
from stpt.training.found_actions import read_results
from stpt.training.scoring import Truth, figures, join, read_truth, usual_thresholds

THRESHOLD = 0.5
"""tIoU of the curves and of the kinds of errors."""
SHOWN = 10
"""Bars of a timeline for each action that there is."""


def draw_detections(found: Path, judged: Any, folder: Path, videos: int) -> list[Path]:
    """Every picture of an evaluation.

    Args:
        found: the file of detections. judged: the `TADMetric` of a config. folder: to write to.
        videos: number of timelines.

    Returns:
        The paths.
    """
    classes, results = judged.get("classes"), read_results(found)
    unnamed = classes is not None and list(classes) == [ANY_ACTION]
    one_class = unnamed and not judged.get("classifier")
    truth = read_truth(judged.truth, judged.get("subset"), judged.get("policy", "afsd"), None if unnamed else classes)
    joined = join(results, truth, one_class)
    thresholds = tuple(judged.get("thresholds") or usual_thresholds(truth.annotations.classes))
    ap, _ = figures(joined, thresholds, truth.absent)
    names = [joined.classes[number] for number in ap.classes]
    curves = precision_recall(joined.found, joined.truth, THRESHOLD, truth.absent)
    pictures = {
        "ap_heat_map": draw_ap_heat_map(ap.ap, names, thresholds),
        "precision_recall": draw_precision_recall({joined.classes[i]: curve for i, curve in curves.items()}, THRESHOLD),
        "error_breakdown": draw_error_breakdown(error_breakdown(joined.found, joined.truth, THRESHOLD)),
    }
    paths = [folder / f"{name}.png" for name in pictures]
    folder.mkdir(parents=True, exist_ok=True)
    for path, picture in zip(paths, pictures.values(), strict=True):
        save_figure(picture, path)
    return paths + draw_timelines(found, truth, folder / "timelines", videos)


def draw_timelines(found: Path, truth: Truth, folder: Path, videos: int) -> list[Path]:
    """What was found in the first videos of the truth, beside their actions.

    Args:
        found: file of detections. videos: at most so many.

    Returns:
        The paths: a picture a video.
    """
    results, paths = {bare(name): one for name, one in read_results(found).items()}, []
    folder.mkdir(parents=True, exist_ok=True)
    listed = [video for video in truth.annotations.videos.values() if video.actions and bare(video.name) in results]
    for video in listed[:videos]:
        one = results[bare(video.name)]
        bars = [
            Bar(start, end, label, score)
            for (start, end), label, score in zip(one.segments.tolist(), one.labels, one.scores.tolist(), strict=True)
        ]
        actions = [Bar(action.start, action.end, action.label) for action in video.actions]
        paths.append(folder / f"{video.name}.png")
        most = SHOWN * len(actions)
        draw_timeline(paths[-1], actions, bars, title=f"Actions of {video.name}", length=video.duration, most=most)
    return paths
