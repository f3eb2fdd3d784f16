"""Score a file of detections (`stpt detect`, training, or another tool's) against annotations: mAP, recall, errors.

Writes metrics.json, and pictures: average precision by class and threshold, precision along recall, kinds of errors.
ActivityNet's detectors tell actions from background only (label "action"): they are scored as one class, and with
--classifier FILE also under the names that a classifier of whole videos gives. Which figure is which is printed.
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("detections", type=str, help="JSON file of detections")
    parser.add_argument("annotations", type=str, help="file or folder of annotations")
    parser.add_argument("--subset", type=str | None, default=None, help="of the annotations, such as test; all without")
    parser.add_argument(
        "--policy", type=str, default="afsd",
        help="what counts: afsd; opentad drops actions that stand twice and two videos of THUMOS14, and counts "
        "detections in videos without actions as wrong",
    )  # fmt: skip
    parser.add_argument(
        "--thresholds", type=list[float] | None, default=None,
        help="of tIoU; without: 0.3 to 0.7 for THUMOS14's classes, 0.5 to 0.95 for others",
    )  # fmt: skip
    parser.add_argument("--classifier", type=str | None, default=None, help="scores of whole videos, CUHK's form")
    parser.add_argument("--top", type=int, default=1, help="names that the classifier gives each detection")
    parser.add_argument("--at", type=float, default=0.5, help="tIoU of the errors and of precision along recall")
    parser.add_argument("--output", type=str, default="runs/stpt/score", help="folder")


def run(arguments: Any) -> int:
    import time
    from pathlib import Path

    from paperkit.command.engines import refuse_below_one
    from paperkit.errors import UserError
    from paperkit.results.metrics import Metrics, Row
    from paperkit.results.report import print_metrics
    from stpt.method.errors import LEAST
    from stpt.models.labels import ANY_ACTION
    from stpt.training.evaluation_figures import draw_evaluation
    from stpt.training.external_classifier import name_by_classifier, read_classifier
    from stpt.training.found_actions import read_results
    from stpt.training.scoring import figures, join, read_truth, usual_thresholds

    refuse_below_one(arguments, ["top"])
    for threshold in [arguments.at, *(arguments.thresholds or [])]:
        if not LEAST < threshold <= 1:
            raise UserError(f"a threshold of {threshold:g}; tIoU is above {LEAST} and at most 1")
    if arguments.thresholds is not None and not arguments.thresholds:
        raise UserError("no thresholds; leave the option out for the usual ones")
    start, results = time.monotonic(), read_results(arguments.detections)
    truth = read_truth(arguments.annotations, arguments.subset, arguments.policy)
    thresholds = arguments.thresholds or usual_thresholds(truth.annotations.classes)
    one_class = {label for found in results.values() for label in found.labels} == {ANY_ACTION}
    if arguments.classifier is not None and not one_class:
        raise UserError(
            f"{arguments.detections} names classes already; --classifier names the label {ANY_ACTION!r} only"
        )
    arms = {}
    if one_class:
        arms["one class, no classifier"] = join(results, truth, one_class=True)
    if arguments.classifier is not None:
        named = name_by_classifier(results, read_classifier(arguments.classifier), arguments.top)
        arms[f"named by {Path(arguments.classifier).name}"] = join(named, truth)
    elif not one_class:
        arms["all classes"] = join(results, truth)
    rows: list[Row] = []
    for arm, joined in arms.items():
        result, values = figures(joined, thresholds, truth.absent)
        rows += [Row(arm, name, [value], "%") for name, value in values.items()]
    classes, folder = [joined.classes[number] for number in result.classes], Path(arguments.output)
    errors = draw_evaluation(joined, result, truth.absent, arguments.at, folder / "figures")
    extra = {
        "policy": arguments.policy, "videos": len(truth.annotations.videos), "actions": len(joined.truth),
        "detections": len(joined.found), "classes": dict(zip(classes, (100 * result.ap.mean(0)).tolist(), strict=True)),
        "errors": {"tIoU": errors.threshold, "missed": errors.missed, "gains": errors.gains,
                   "shares of as many detections as actions": errors.shares[0].tolist()},
    }  # fmt: skip
    metrics = Metrics("stpt", [0], time.monotonic() - start, rows, [], extra=extra)
    metrics.write(folder / "metrics.json")
    print_metrics(metrics, f"{extra['detections']} detections of {extra['actions']} actions, policy {arguments.policy}")
    for line in _notes(joined, one_class and arguments.classifier is None):
        print(line)
    print(f"{folder / 'metrics.json'}, {folder / 'figures'}")
    return 0


def _notes(joined: Any, unnamed: bool) -> list[str]:
    """What the figures do not show."""
    notes = []
    if joined.unknown:
        label, times = joined.unknown.most_common(1)[0]
        total = sum(joined.unknown.values())
        notes.append(
            f"left out: {total} detections of {len(joined.unknown)} unknown classes, such as {label!r} ({times})"
        )
    for names, what in (
        (joined.strangers, "videos with detections are not among the annotations"),
        (joined.silent, "videos with actions have no detection that counts"),
    ):
        if names:
            notes.append(f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
    if unnamed:
        notes.append("mAP of all classes needs names: --classifier FILE with scores of whole videos")
    return notes
