"""Pictures of an evaluation: average precision by class and threshold, precision along recall, kinds of errors."""

from pathlib import Path

from paperkit.results.report import save_figure
from stpt.figures.ap_heat_map import draw_ap_heat_map
from stpt.figures.error_breakdown import draw_error_breakdown
from stpt.figures.precision_recall import draw_precision_recall
from stpt.method.detection_map import Absent, DetectionMap, precision_recall
from stpt.method.errors import ErrorBreakdown, error_breakdown
from stpt.training.scoring import Joined


def draw_evaluation(joined: Joined, ap: DetectionMap, absent: Absent, at: float, folder: Path) -> ErrorBreakdown:
    """Write ap_heat_map.png, precision_recall.png and error_breakdown.png; returns what the last shows.

    Args:
        ap: of both sides, `stpt.training.scoring.figures`. at: tIoU of the other two pictures.
    """
    names = [joined.classes[number] for number in ap.classes]
    curves = precision_recall(joined.found, joined.truth, at, absent)
    errors = error_breakdown(joined.found, joined.truth, at)
    pictures = {
        "ap_heat_map": draw_ap_heat_map(ap.ap, names, ap.thresholds.tolist()),
        "precision_recall": draw_precision_recall({joined.classes[i]: curve for i, curve in curves.items()}, at),
        "error_breakdown": draw_error_breakdown(errors),
    }
    for name, picture in pictures.items():
        save_figure(picture, folder / f"{name}.png")
    return errors
