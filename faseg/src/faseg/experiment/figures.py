"""Figures 1 to 6 of a run folder, drawn from metrics.json and the first seed's weights."""

from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from faseg.experiment.looking import PAIRS, SIZES, STRIDES, look
from faseg.experiment.measuring import labels_of
from faseg.experiment.network import SceneNetwork
from faseg.experiment.run import scenes_of, trained
from faseg.experiment.scenes import CLASSES
from faseg.experiment.settings import ARMS, BASE, FASEG, ExperimentConfig
from faseg.experiment.summary import IOU, MACS
from faseg.figures.consistency import draw_consistency
from faseg.figures.layer_maps import as_map
from faseg.figures.map_grid import draw_maps, similarity
from faseg.figures.mean_iou import draw_mean_iou
from faseg.figures.segmentations import draw_segmentations
from faseg.figures.windows import draw_windows
from faseg.method.decoder import LayerTrace
from paperkit.results.metrics import Metrics
from paperkit.results.report import save_figure

SCENES = 6
ROWS = 4
QUERIES = 2
NAMES = tuple(f"digit {digit}" for digit in CLASSES)


@torch.no_grad()
def draw(metrics: Metrics, run: Path, folder: Path, config: ExperimentConfig) -> list[Path]:
    """Every figure of a run as PNG files in `folder`."""
    networks = {arm: trained(arm, config.first_seed, run, config) for arm in ARMS}
    images, labels = scenes_of(config.split, SCENES, config)
    pictures = list(images[:, 0].clamp(0, 1))
    shown = int((labels < len(CLASSES)).sum((1, 2)).argmax())  # the scene with most ink
    two = {arm: networks[arm] for arm in (FASEG, BASE)}
    chosen = {arm: _chosen(network, images[shown : shown + 1]) for arm, network in two.items()}
    omegas = {
        int(row.arm.rpartition(" ")[2]): (metrics.row(row.arm, MACS).mean, row.values)
        for row in metrics.rows
        if row.metric == IOU and "omega" in row.arm
    }

    def attention(arm: str, trace: list[LayerTrace], queries: list[int]) -> dict[str, list[Tensor | None]]:
        return {f"{arm}, query {q}": [as_map(seen, SIZES)[0, q] for seen in trace] for q in queries}

    def positions(arm: str, trace: list[LayerTrace], queries: list[int]) -> dict[str, list[Tensor | None]]:
        keys = two[arm].pyramid(images[shown : shown + 1])[1]
        return {
            f"{arm}, query {q}": [similarity(seen.query_pos[0], keys[seen.level][0])[q] for seen in trace]
            for q in queries
        }

    def grid(
        rows_of: Callable[[str, list[LayerTrace], list[int]], dict[str, list[Tensor | None]]], title: str, signed: bool
    ) -> Figure:
        rows = {name: maps for arm, seen in chosen.items() for name, maps in rows_of(arm, *seen).items()}
        strides = {arm: [f"1/{STRIDES[s.level]}" for s in trace] for arm, (trace, _) in chosen.items()}
        columns = [f"layer {i}\n{a}, {b}" for i, (a, b) in enumerate(zip(*strides.values(), strict=True))]
        return draw_maps(pictures[shown], rows, columns, title, signed)

    def windows() -> Figure:
        trace, _ = look(networks[FASEG], images)
        scores = as_map(trace[0], SIZES).sum(1)
        cells = trace[3].cells
        assert cells is not None
        return draw_windows(pictures, list(scores), list(cells))

    makers: dict[str, Callable[[], Figure]] = {
        "attention": lambda: grid(
            attention, f"Where the surest queries look, layer by layer; strides of {FASEG}, {BASE}", False
        ),
        "positions": lambda: grid(
            positions, f"Cosine of positional queries and key positions; strides of {FASEG}, {BASE}", True
        ),
        "windows": windows,
        "consistency": lambda: draw_consistency(metrics.extra["consistency"], PAIRS),
        "mean_iou": lambda: draw_mean_iou(metrics.extra["ious"], omegas, "million"),
        "segmentations": lambda: draw_segmentations(
            pictures[:ROWS],
            list(labels[:ROWS]),
            {arm: list(labels_of(network(images[:ROWS], masks="all"))) for arm, network in two.items()},
            NAMES,
        ),
    }
    for name, make in makers.items():
        save_figure(make(), folder / f"{name}.png")
    return [folder / f"{name}.png" for name in makers]


def _chosen(network: SceneNetwork, image: Tensor) -> tuple[list[LayerTrace], list[int]]:
    """What the layers did with one image, and its queries with the likeliest classes."""
    trace, likely = look(network, image)
    return trace, likely[0].topk(min(QUERIES, likely.shape[1])).indices.tolist()
