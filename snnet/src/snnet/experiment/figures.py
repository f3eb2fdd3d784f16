"""Figures of the embedded experiment: stitches beside the baselines, both initialisations (paper, figures 4 and 6)."""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from paperkit.results.metrics import Metrics
from paperkit.results.report import figure, save_figure, style
from snnet.experiment.settings import ANCHOR_NAMES, DEFAULT, METHOD
from snnet.figures.stitches import Point, draw_curve, draw_cut_maps, point


def draw(metrics: Metrics, folder: Path) -> list[Path]:
    """All figures of the embedded experiment."""
    configurations, arms = metrics.extra["configurations"], metrics.extra["arms"]
    points = points_of(metrics)
    baselines = {
        "anchor tuned alone": [
            (configurations[i]["macs"], metrics.row(f"{name} tuned alone", "accuracy").mean)
            for i, name in enumerate(ANCHOR_NAMES)
        ],
        "middle distilled": [(configurations[1]["macs"], metrics.row("middle distilled", "accuracy").mean)],
    }
    scratch = [found["from scratch"] for found in arms]
    if scratch[0]:
        baselines["from scratch"] = [
            (configurations[int(i)]["macs"], mean(found[i] for found in scratch)) for i in scratch[0]
        ]
    title = f"Every configuration of one network (digits, {metrics.extra['split']} images)"
    paths = [
        draw_curve(points, folder / "stitches.png", title, baselines),
        draw_initialisation(metrics, folder / "initialisation.png"),
    ]
    return paths + draw_cut_maps(points, folder, ANCHOR_NAMES)


def points_of(metrics: Metrics) -> list[Point]:
    """Every configuration of the method's network, accuracy averaged over the seeds."""
    arms = [found[METHOD] for found in metrics.extra["arms"]]
    return [point(c, [found[key(found, c["id"])] for found in arms]) for c in metrics.extra["configurations"]]


def key(found: Mapping[Any, float], config_id: int) -> Any:
    """The id as `found` has it: JSON turns integer keys into strings."""
    return config_id if config_id in found else str(config_id)


def draw_initialisation(metrics: Metrics, path: Path) -> Path:
    """Mean stitch accuracy over the epochs from both initialisations, with its spread over the seeds."""
    stitches = [c["id"] for c in metrics.extra["configurations"] if c["cut"]]
    with style():
        drawn, axes = figure()
        for arm in (METHOD, DEFAULT):
            curves = metrics.extra["curves"][arm]
            epochs = sorted(map(int, curves[0]))
            values = np.array(
                [[mean(c[key(c, e)][key(c[key(c, e)], i)] for i in stitches) for e in epochs] for c in curves]
            )
            spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(epochs))
            axes.errorbar(range(len(epochs)), values.mean(axis=0), spread, marker="o", label=arm)
        axes.set_xticks(range(len(epochs)), [str(e) for e in epochs])
        axes.set(
            xlabel="epochs of joint training",
            ylabel="mean accuracy of all stitches [%]",
            title="Stitches during joint training, by initialisation",
        )
        axes.legend(loc="lower right")
        save_figure(drawn, path)
    return path
