"""Figures of a run on real data, or of a sweep: sensitivity by block and operation, selections, budgets, epochs."""

from pathlib import Path
from typing import Any

from paperkit.errors import UserError
from paperkit.files.runs import RunFolder
from paperkit.results.metrics import Metrics
from paperkit.results.report import COLORS, figure, save_figure, style
from spt.figures.selections import draw_by_block, draw_by_operation, draw_concentration, draw_selections
from spt.figures.statistics import block_of, concentration, share_by_place, staircase
from spt.method.budget import RELEASED_BUDGETS
from spt.method.candidates import OPERATIONS
from spt.method.sensitivity import load_sensitivities
from spt.models.delta import load_delta

SHARE = 0.004  # of the weights: the marks of figures 1 and 2
MOST = 1_580_000  # the largest tau of the released sweep


def runs_of(folder: RunFolder) -> dict[str, Path]:
    """Task -> run with sensitivities: the run itself, or the final runs of a sweep."""
    if (folder.path / "sensitivities.safetensors").is_file():
        return {str(folder.read_config()["data"].get("name", "ade20k")): folder.path}
    found = sorted(folder.path.glob("*/test-*/sensitivities.safetensors"))
    return {path.parent.parent.name: path.parent for path in found}


def draw_run(folder: RunFolder, to: Path) -> list[Path]:
    """All figures of a finished run or sweep; returns their paths.

    Raises:
        UserError: for a run that measured no sensitivities.
    """
    runs = {task: path for task, path in runs_of(folder).items() if (path / "delta" / "adapter_config.json").is_file()}
    if not runs:
        raise UserError(f"{folder.path} holds no finished run with sensitivities; its curves are in TensorBoard")
    record: dict[str, Any] = {"maps": {}, "selections": {}}
    stairs, curves = {}, {}
    for task, path in runs.items():
        values, delta = load_sensitivities(path / "sensitivities.safetensors").values, load_delta(path / "delta")
        total = sum(value.numel() for value in values.values())
        record["maps"][task] = share_by_place(values, max(1, round(SHARE * total)))
        chosen, blocks = set(delta.module_matrices()), list(dict.fromkeys(block_of(n) for n in values if "." in n))
        names = {(block_of(n), n.split(".")[-2]): n for n, value in values.items() if value.ndim == 2}
        rows = [block for block in blocks if any(owner == block for owner, _ in names)]
        record["selections"][task] = [[int(names.get((b, o)) in chosen) for o in OPERATIONS] for b in rows]
        stairs[task], curves[task] = staircase(values, delta.rule, min(total, MOST)), concentration(values)
    to.mkdir(parents=True, exist_ok=True)
    drawings = {
        "sensitivity_by_block.png": lambda: draw_by_block([record]),
        "sensitivity_by_operation.png": lambda: draw_by_operation([record]),
        "selections.png": lambda: draw_selections([record]),
        "budget.png": lambda: draw_budgets(stairs),
        "concentration.png": lambda: draw_concentration(curves),
        "epochs.png": lambda: draw_epochs(runs),
    }
    with style():
        for name, drawing in drawings.items():
            save_figure(drawing(), to / name)
    return [to / name for name in drawings]


def draw_budgets(stairs: dict[str, list[tuple[int, int]]]) -> Any:
    """total(tau) of every task with the released budgets marked (figure 5)."""
    drawn, axes = figure()
    for index, (task, points) in enumerate(stairs.items()):
        tau, total = zip(*points, strict=True)
        axes.step(tau, total, where="post", color=COLORS[index % len(COLORS)], label=task)
    top = max(total for points in stairs.values() for _, total in points)
    for budget in RELEASED_BUDGETS:
        if 1e6 * budget <= top:
            axes.axhline(1e6 * budget, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_xlabel("tau, the number of marked entries")
    axes.set_ylabel("counted parameters (dotted: the released budgets)")
    axes.set_title("What tau marks cost with their modules")
    axes.legend()
    return drawn


def draw_epochs(runs: dict[str, Path]) -> Any:
    """The accuracy or mIoU of every evaluation; the last one is the result."""
    drawn, axes = figure()
    for index, (task, path) in enumerate(runs.items()):
        history = Metrics.read(path / "metrics.json").extra["history"]
        at, value = list(history[0])[:2]
        axes.plot(
            [p[at] for p in history],
            [p[value] for p in history],
            marker=".",
            color=COLORS[index % len(COLORS)],
            label=task,
        )
    axes.set_xlabel(at)
    axes.set_ylabel(f"{value} (%)")
    axes.set_title("Every evaluation of the run; the last one is the result")
    axes.legend()
    return drawn
