"""The clock: the decoder in two forms, whole models against Mask2Former of `transformers`, and what omega buys.

Each part measures, prints its table with the aims it met or missed, and returns its rows; `draw` plots them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from faseg.bench import forms, networks
from faseg.bench.memory import decoder_peak
from faseg.experiment.settings import FASEG
from faseg.experiment.summary import IOU, MACS
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder
from paperkit.results.environment import cpu
from paperkit.results.measure import Ratio, compare
from paperkit.results.metrics import Metrics
from paperkit.results.report import COLORS, figure, save_figure, style, table

Rows = list[dict[str, Any]]
TIME, MEMORY = "time, ms", "peak memory, MiB"
FORWARD, BACKWARD = "forward", "forward, backward"
POINTS = (((512, 512), FORWARD), ((512, 1024), FORWARD), ((512, 512), BACKWARD))
AIMS = {FORWARD: {TIME: 2.0, MEMORY: 5.0}, BACKWARD: {TIME: 2.5, MEMORY: 3.0}}
"""The elementwise form over ours, aimed at."""
OMEGA = f"{FASEG}, omega "
MODEL_AIM = 0.95
"""Time of ours over that of `transformers`, at most."""
AGREE = 1e-3
"""Largest difference of the forms, relative to the largest value; a mask's hard threshold may flip between them."""


def decoder(quick: bool, threads: int | None = None) -> Rows:
    """Time and peak memory of the decoder, the elementwise form over ours."""
    rows: Rows = []
    for (height, width), passes in POINTS[::2] if quick else POINTS:
        steps = forms.decoder_steps(height, width, passes == BACKWARD)
        _check_agreement([step() for step in steps.values()])
        with _Threads(threads or 1):
            pairs = 1 if quick else 5
            ratio = compare(steps[forms.OURS], {forms.PLAIN: steps[forms.PLAIN]}, pairs=pairs, warmup=1)[1]
        peaks = [decoder_peak(form, height, width, passes == BACKWARD) for form in steps]
        here = {"picture": f"{height} x {width}", "pass": passes}
        times = {"ours": 1e3 * ratio.baseline_seconds, "elementwise": 1e3 * ratio.seconds}
        found: list[tuple[str, dict[str, float]]] = [
            (TIME, {**times, "ratio": ratio.median, "q25": ratio.q25, "q75": ratio.q75}),
            (MEMORY, {"ours": peaks[0], "elementwise": peaks[1], "ratio": peaks[1] / peaks[0]}),
        ]
        for quantity, values in found:
            aim = AIMS[passes][quantity]
            rows.append({**here, "of": quantity, **values, "aim": aim, "met": values["ratio"] >= aim})
    keys = ("picture", "pass", "of", "ours", "elementwise", "ratio", "q25", "q75")
    columns = ("picture", "pass", "of", "ours", "elementwise", "elementwise / ours", "q25", "q75", "aim, at least")
    title = f"Decoder alone: 13 layers, 100 queries, float32, batch 1, threads {threads or 1} (memory: 1)"
    table([(*(row.get(key, "") for key in keys), _verdict(row)) for row in rows], columns, title)
    return rows


def model(quick: bool, threads: int | None = None) -> Rows:
    """Time of whole R50 networks on a picture of 512 x 512, ours over Mask2Former of `transformers`."""
    image, raced = networks.image_of(512, 512), networks.whole_networks()
    with torch.inference_mode():
        _check_agreement([raced[name](image) for name in (networks.BASELINE, networks.THEIRS)])
        with _Threads(threads or 1):
            theirs, *others = (partial(network, image) for network in raced.values())
            variants = dict(zip(list(raced)[1:], others, strict=True))
            ratios = compare(theirs, variants, pairs=1 if quick else 5, warmup=1, name=networks.THEIRS)
    rows: Rows = []
    for ratio in ratios:
        aim = MODEL_AIM if ratio.name in (networks.BASELINE, networks.FOCUSED) else None
        met = None if aim is None else ratio.median <= aim
        rows.append({"network": ratio.name, **_times(ratio), "aim": aim, "met": met})
    columns = ("network", "time / transformers'", "q25", "q75", "ms", "aim, at most")
    title = f"Whole networks, ResNet-50, 512 x 512, float32, batch 1, threads {threads or 1}"
    table(
        [(*(row[key] for key in ("network", "ratio", "q25", "q75", "ms")), _verdict(row)) for row in rows],
        columns,
        title,
    )
    return rows


def omega(run: str) -> Rows:
    """Mean IoU of an embedded run's networks by the windows that they keep, and multiply-adds of a scene.

    Args:
        run: its folder; empty for the newest finished one.

    Raises:
        UserError: there is none, or it tells nothing of omegas.
    """
    metrics = Metrics.read(_finished(run) / "metrics.json")
    of = {(row.arm, row.metric): row.mean for row in metrics.rows}
    rows: Rows = []
    for arm in sorted({arm for arm, _ in of if arm.startswith(OMEGA)}, key=lambda arm: int(arm.removeprefix(OMEGA))):
        iou, macs = of[arm, IOU], of[arm, MACS] / 1e3
        rows.append({"omega": int(arm.removeprefix(OMEGA)), "mIoU": iou, "GMAC": macs, "mIoU / GMAC": iou / macs})
    if not rows:
        raise UserError(f"{run or 'the newest run'} tells of no omegas; need a run of the embedded experiment")
    columns = ("omega", "mIoU, %", "G multiply-adds", "mIoU per G")
    title = f"FASeg on scenes of digits, trained once and run with each omega (1: all windows), seeds {metrics.seeds}"
    table([list(row.values()) for row in rows], columns, title)
    return rows


def _finished(run: str) -> Path:
    if run:
        return RunFolder.open(run).path
    for found in RunFolder.started("runs", "faseg"):
        path = found.path / "metrics.json"
        if found.finished and path.is_file() and any(r.arm.startswith(OMEGA) for r in Metrics.read(path).rows):
            return found.path
    raise UserError("no finished embedded run in runs/faseg: run `faseg train` first, or leave out omega")


PARTS: dict[str, Callable[[bool, int | None], Rows]] = {"decoder": decoder, "model": model}
"""Parts that measure time; `omega` reads a run."""


def missed(found: dict[str, Rows]) -> tuple[int, list[str]]:
    """How many aims there are in all parts, and the missed ones in words."""
    judged = [(part, row) for part, rows in found.items() for row in rows if row.get("aim") is not None]
    words = []
    for part, row in judged:
        if not row["met"]:
            where = ", ".join(str(row[key]) for key in ("network", "picture", "pass", "of") if key in row)
            words.append(f"{part}: {where}: {row['ratio']:.3g}, aim {row['aim']:g}")
    return len(judged), words


def draw(found: dict[str, Rows], path: Path) -> None:
    """A panel for each part that was measured."""
    drawings = {"decoder": _draw_decoder, "model": _draw_model, "omega": _draw_omega}
    parts = [part for part in drawings if found.get(part)]
    with style():
        drawn, axes = figure(1, len(parts), width=1 + 5 * len(parts), height=4.4, squeeze=False)
        for ax, part in zip(axes.flat, parts, strict=True):
            drawings[part](found[part], ax)
        drawn.suptitle(f"float32, medians of interleaved pairs, {cpu()['model']}")
        save_figure(drawn, path)


def _draw_decoder(rows: Rows, ax: Any) -> None:
    names = [f"{row['picture']}, {row['pass']}\n{row['of'].split(',')[0]}" for row in rows]
    _bars(ax, names, rows, "elementwise form / lean form", "Decoder: further right, more is saved")


def _draw_model(rows: Rows, ax: Any) -> None:
    shown = [row for row in rows if "again" not in row["network"]]
    names = [row["network"].replace(", ", ",\n") for row in shown]
    _bars(ax, names, shown, "time / Mask2Former of transformers", "Whole networks: below 1 is faster")


def _bars(ax: Any, names: Sequence[str], rows: Rows, label: str, title: str) -> None:
    ax.barh(names, [row["ratio"] for row in rows], color=COLORS[0])
    ax.axvline(1, color="grey", linewidth=1)
    for number, row in enumerate(rows):
        if row["aim"] is not None:
            ax.plot(
                [row["aim"]] * 2, [number - 0.4, number + 0.4], color=COLORS[1], label="aim" if number == 0 else None
            )
    ax.tick_params(axis="y", labelsize=7)
    ax.set(xlabel=f"{label} (marked: the aim)", title=title)


def _draw_omega(rows: Rows, ax: Any) -> None:
    ax.plot([row["GMAC"] * 1e3 for row in rows], [row["mIoU"] for row in rows], "o-", color=COLORS[0])
    for row in rows:
        ax.annotate(f"omega {row['omega']}", (row["GMAC"] * 1e3, row["mIoU"]), fontsize=8)
    ax.set(xlabel="million multiply-adds a scene", ylabel="mIoU", title="Scenes of digits: what more windows buy")


class _Threads:
    """That many threads of torch inside the block, one behind it."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> None:
        torch.set_num_threads(self.count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(1)


def _check_agreement(results: Sequence[Any]) -> None:
    """Raises UserError where two forms of one thing give different numbers."""
    first, second = ([each] if isinstance(each, torch.Tensor) else list(each) for each in results)
    for ours, theirs in zip(first, second, strict=True):
        if (off := float((ours - theirs).abs().max() / theirs.abs().max())) > AGREE:
            raise UserError(f"two forms of one network differ by {off:.2g} of the largest value, above {AGREE:g}")


def _verdict(row: dict[str, Any]) -> str:
    return "" if row["aim"] is None else f"{row['aim']:g}: {'met' if row['met'] else 'MISSED'}"


def _times(ratio: Ratio) -> dict[str, float]:
    return {"ratio": ratio.median, "q25": ratio.q25, "q75": ratio.q75, "ms": 1e3 * ratio.seconds}
