"""The clock: boundary pooling, soft-NMS, mAP, whole backbones, shared overlaps and recomputed activations.

Each part measures, prints its table with the aims it met or missed, and returns its rows; `draw` plots them. A row is
one rival: what it takes over what ours takes, so that above 1 ours is the cheaper one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from paperkit.errors import UserError
from paperkit.results.environment import cpu
from paperkit.results.measure import Ratio, compare
from paperkit.results.report import COLORS, figure, save_figure, style, table
from stpt.bench import forms, networks
from stpt.bench.memory import clip_peak, training_peak
from stpt.deployment.precision import FLOAT32, PRECISIONS

Rows = list[dict[str, Any]]
Steps = Mapping[str, Callable[[], object]]
TIME, MEMORY = "time, ms", "peak memory, MiB"

POOLING = ((1, 1024, 64, 64), (1, 512, 256, 126), (4, 512, 256, 126))
"""Clips, channels, cells and windows: of the tower's features, and of the frame-level ones."""
POOLING_AIMS = {1: 5.0, 4: 10.0}
"""Clips -> time of the loop, forward and backward, over ours."""
NMS_AIMS = {forms.BY_CLASS: 2.5, forms.BY_CANDIDATE: 30.0}
MAP_AIM = 50.0
DETECTIONS = 200_000
"""Of THUMOS14's test set, as soft-NMS leaves them at these scores."""
CLIP_AIM = 1 / 0.8
"""Time of the two streams of I3D over that of LLGG."""


def pooling(quick: bool, threads: int) -> Rows:
    """Boundary pooling against a loop over windows and against masked maxima."""
    rows: Rows = []
    for size in POOLING[:1] if quick else POOLING:
        for backward in (False, True):
            steps = forms.pooling_steps(*size, backward)
            _check_agreement(steps)
            aim = {forms.LOOP: POOLING_AIMS[size[0]]} if backward and not quick else {}
            what = f"{size[0]} x {size[1]} x {size[2]}, {size[3]} windows, {'both passes' if backward else 'forward'}"
            rows += _times(what, steps, aim, 3 if quick else 9)
    return _told(rows, f"Boundary pooling, float32, threads {threads}")


def nms(quick: bool, threads: int) -> Rows:
    """Soft-NMS as one padded problem against a class after the other, and against loops over candidates."""
    rows: Rows = []
    _check_agreement(forms.nms_steps(3, 40, "float64"))  # in float32 a score near the least one may fall on either side
    for candidates in (100,) if quick else (300, 1000):
        what, steps = f"{forms.CLASSES} classes x {candidates}", forms.nms_steps(forms.CLASSES, candidates)
        aims = {} if candidates < 1000 else NMS_AIMS
        slow = {name: steps[name] for name in (forms.PADDED, forms.BY_CANDIDATE)}
        fast = {name: step for name, step in steps.items() if name != forms.BY_CANDIDATE}
        rows += [*_times(what, fast, aims, 3 if quick else 7), *_once(what, slow, aims)]
    return _told(rows, f"Soft-NMS, sigma 0.5, least score 0.001, threads {threads}")


def mean_ap(quick: bool, threads: int) -> Rows:
    """MAP of detections of THUMOS14's size against loops."""
    size = (20, 200, 2_000) if quick else (forms.VIDEOS, forms.ACTIONS, DETECTIONS)
    steps = forms.map_steps(*size)
    _check_agreement(steps)
    what = f"{size[0]} videos, {size[1]} actions, {size[2]} detections"
    ours, aims = steps[forms.VECTORISED], {} if quick else {forms.LOOPS: MAP_AIM}
    pairs = ({forms.VECTORISED: ours, name: steps[name]} for name in (forms.MMACTION, forms.LOOPS))
    return _told([row for pair in pairs for row in _once(what, pair, aims)], f"mAP at five tIoU, threads {threads}")


def clips(quick: bool, threads: int) -> Rows:
    """A backbone's time and peak memory for one clip: LLGG against LLLL, GGGG and the two streams of I3D."""
    shape = networks.SMALL if quick else networks.SHAPE
    rows: Rows = []
    for precision in PRECISIONS:
        steps = networks.clip_steps((networks.LLGG, networks.LLLL, networks.I3D), shape, precision)
        aims = {} if quick else {networks.I3D: CLIP_AIM}
        rows += _times(f"one clip, {precision}", steps, aims, 1 if quick else 3)
    slow = networks.clip_steps((networks.LLGG, networks.GGGG), shape, FLOAT32)
    rows += _once(f"one clip, {FLOAT32}", slow, {})
    peaks = {name: clip_peak(name, shape) for name in (*networks.NAMES, networks.I3D)}
    rows += _memory("one clip", peaks, networks.LLGG)
    return _told(rows, f"Backbone, {_size(shape)}, batch 1, threads {threads} (memory: 1)")


def overlap(quick: bool, threads: int) -> Rows:
    """A long video in windows that overlap by half, the first stages once a window or once a frame; and the drift."""
    frames, shape = (256, networks.SMALL) if quick else (1024, networks.SHAPE)
    steps, told = networks.overlap_steps(frames, shape)
    rows = _once(f"{frames} frames, windows of {shape[1]} at every {shape[1] // 2}th", steps, {}, warm=True)
    drift = told()
    rows[0]["drift"] = drift
    _told(rows, f"Shared overlap of windows, LLGG with made weights, {FLOAT32}, batch 1, threads {threads}")
    shown = ", ".join(f"{value:.2g}" for value in drift)
    print(
        f"drift of a window's two maps: {shown} (root mean square of the difference over that of the map)", flush=True
    )
    return rows


def checkpointing(quick: bool, threads: int) -> Rows:
    """A backbone's forward and backward passes with activations kept and with activations computed again."""
    shape = networks.SMALL if quick else networks.SHAPE
    steps = networks.training_steps(shape)
    rows = _once("forward, backward", {name: steps[name] for name in (networks.KEPT, networks.AGAIN)}, {})
    rows += _memory("forward, backward", {name: training_peak(name, shape) for name in steps}, networks.KEPT)
    return _told(rows, f"Activations of the backbone, {_size(shape)}, batch 1, threads {threads} (memory: 1)")


PARTS: dict[str, Callable[[bool, int], Rows]] = {
    "pooling": pooling, "nms": nms, "map": mean_ap, "clip": clips, "overlap": overlap, "checkpointing": checkpointing,
}  # fmt: skip


def missed(found: Mapping[str, Rows]) -> tuple[int, list[str]]:
    """How many aims there are in all parts, and the missed ones in words."""
    judged = [(part, row) for part, rows in found.items() for row in rows if row["aim"] is not None]
    words = [
        f"{part}: {row['race']}, {row['rival']}: {row['ratio']:.3g}, aim {row['aim']:.3g}"
        for part, row in judged
        if not row["met"]
    ]
    return len(judged), words


def draw(found: Mapping[str, Rows], path: Path) -> None:
    """A panel for each part: the rivals' ratios as bars on a logarithmic axis, aims marked."""
    with style():
        height = 0.5 + 0.22 * max(len(rows) for rows in found.values())
        columns = min(2, len(found))
        lines = math.ceil(len(found) / columns)
        drawn, axes = figure(lines, columns, width=8.0 * columns, height=1 + lines * height, squeeze=False)
        for ax, part in zip(axes.flat, found, strict=False):
            _draw_part(ax, part, [row for row in found[part] if not row["rival"].endswith(" again")])
        for ax in axes.flat[len(found) :]:
            ax.set_axis_off()
        drawn.suptitle(f"What rivals take over what ours takes, {cpu()['model']}")
        save_figure(drawn, path)


def _draw_part(ax: Any, part: str, rows: Rows) -> None:
    places = range(len(rows))
    ax.barh(places, [row["ratio"] - 1 for row in rows], left=1, color=COLORS[0])
    for place, row in zip(places, rows, strict=True):
        if row["aim"] is not None:
            ax.plot([row["aim"]] * 2, [place - 0.4, place + 0.4], color=COLORS[1], label="aim" if place == 0 else None)
    ax.set_yticks(places, [f"{row['race']}: {row['rival']}, {row['of'].split(',')[0]}" for row in rows], fontsize=6)
    ax.axvline(1, color="grey", linewidth=1)
    ax.set(xscale="log", xlabel="rival / ours (orange: the aim)", title=f"{part}: further right, ours saves more")
    ax.invert_yaxis()


def _times(race: str, steps: Steps, aims: Mapping[str, float], pairs: int) -> Rows:
    """Times of the rivals over that of the first step, interleaved."""
    (name, ours), *rivals = steps.items()
    return [_time_row(race, ratio, aims) for ratio in compare(ours, dict(rivals), pairs, 1, name=name)]


def _once(race: str, steps: Steps, aims: Mapping[str, float], warm: bool = False) -> Rows:
    """The same for a slow rival, which runs once, between two runs of ours and without a run to warm up.

    Args:
        warm: ours needs no run to warm up either.
    """
    (_, ours), (name, rival) = steps.items()
    if not warm:
        ours()
    taken = []
    for step in (ours, rival, ours):
        start = perf_counter()
        step()
        taken.append(perf_counter() - start)
    base = (taken[0] + taken[2]) / 2
    ratio = taken[1] / base
    return [_time_row(race, Ratio(name, ratio, ratio, ratio, base, taken[1], 1), aims)]


def _time_row(race: str, ratio: Ratio, aims: Mapping[str, float]) -> dict[str, Any]:
    times = {"ours": 1e3 * ratio.baseline_seconds, "theirs": 1e3 * ratio.seconds}
    quartiles = {"q25": ratio.q25, "q75": ratio.q75, "pairs": ratio.pairs}
    return {"race": race, "rival": ratio.name, "of": TIME, **times, "ratio": ratio.median, **quartiles} | _judged(
        ratio.median, aims.get(ratio.name)
    )


def _memory(race: str, peaks: Mapping[str, float], ours: str) -> Rows:
    return [
        {"race": race, "rival": name, "of": MEMORY, "ours": peaks[ours], "theirs": peak, "ratio": peak / peaks[ours]}
        | _judged(peak / peaks[ours], None)
        for name, peak in peaks.items()
        if name != ours
    ]


def _judged(ratio: float, aim: float | None) -> dict[str, Any]:
    return {"aim": aim, "met": None if aim is None else ratio >= aim}


def _told(rows: Rows, title: str) -> Rows:
    keys = ("race", "rival", "of", "ours", "theirs", "ratio", "q25", "q75")
    lines = [(*(row.get(key) for key in keys), _verdict(row)) for row in rows]
    columns = ("race", "rival", "of", "ours", "rival's", "rival / ours", "q25", "q75", "aim, at least")
    table(lines, columns, title)
    return rows


def _verdict(row: Mapping[str, Any]) -> str:
    return "" if row["aim"] is None else f"{row['aim']:g}: {'met' if row['met'] else 'MISSED'}"


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape[1:]))


def _check_agreement(steps: Steps) -> None:
    """Raises UserError where two forms of one thing give different numbers."""
    (name, ours), *rivals = steps.items()
    expected = ours()
    for rival, step in rivals:
        try:
            torch.testing.assert_close(_tensors(step()), _tensors(expected), rtol=1e-5, atol=1e-6)
        except AssertionError as error:
            raise UserError(f"{rival} and {name} differ: {error}") from error


def _tensors(result: Any) -> Any:
    """Arrays in a list as tensors; tensors and numbers as they are."""
    return [torch.as_tensor(array) for array in result] if isinstance(result, list) else result
