"""The 19 tasks of VTAB-1k one after the other: budget chosen on validation, result on test, beside the paper's table.

What is finished is not done again.

`spt sweep --config spt/configs/vtab/supervised.yaml --config spt/configs/methods/spt_lora.yaml --data.root DIR
--backbone.file FILE --budgets [400000,200000]`
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from paperkit.errors import UserError
from paperkit.files.atomic import write_atomic
from paperkit.files.runs import RunFolder, process_rank
from paperkit.results.metrics import Metrics
from paperkit.results.report import table
from spt.training import lists
from spt.training.image_lists import VTAB
from spt.training.lists import ListOptions, read_options, train_run

GROUPS = ("Natural", "Specialized", "Structured")


# --- the engine --------------------------------------------------------------------------------------------------


def add_arguments(parser: Any) -> None:
    """The options of a run on lists of images, and the sweep's own."""
    lists.add_arguments(parser)
    parser.add_argument("--tasks", type=list[str], default=list(VTAB), help="tasks, in this order")
    parser.add_argument(
        "--budgets", type=list[int], default=[], help="budgets to choose among (default: the method's one)"
    )


def check(options: Any, run: RunFolder | None) -> None:
    """Refuses unknown tasks and savings that cannot be."""
    if unknown := [task for task in options.tasks if task not in VTAB]:
        raise UserError(f"no VTAB-1k task {unknown[0]!r}; there are {', '.join(VTAB)}")
    lists.check(options, run)


def train(run: RunFolder, options: Any, resuming: bool) -> None:
    """Runs what is not there yet and prints the table."""
    given = read_options(options)
    results = sweep(given, run.path, options.tasks, options.budgets or [given.method.budget])
    print_sweep(results, given.method.structured_type)


def evaluate(run: RunFolder | None, options: Any) -> None:
    """A sweep has no weights of its own."""
    where = run.path if run else "RUN"
    raise UserError(f"a sweep is many runs; evaluate one of them: `spt eval --ckpt {where}/TASK/test-BUDGET`")


figures = lists.figures


# --- the runs ----------------------------------------------------------------------------------------------------


def published() -> dict:
    """The paper's tables as data."""
    return json.loads(files("spt").joinpath("published/vtab.json").read_text())


def sweep(
    options: ListOptions, folder: Path, tasks: Sequence[str], budgets: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Runs every task; what was cut off goes on where it stopped.

    Args:
        budgets: tried on val200, the best one is used for the final run; with a single one nothing is chosen.

    Returns:
        task -> {"budget", "top1", "official_max", and "val_<budget>" for every budget tried}.
    """
    results: dict[str, dict[str, float]] = {}
    for task in tasks:
        point: dict[str, float] = {}
        for budget in budgets if len(budgets) > 1 else ():
            point[f"val_{budget}"] = _one(options, folder, task, budget, final=False).rows[0].mean
        best = max(budgets, key=lambda b: point[f"val_{b}"]) if len(budgets) > 1 else budgets[0]
        metrics = _one(options, folder, task, best, final=True)
        maximum = next(row.mean for row in metrics.rows if row.metric.startswith("official_max"))
        results[task] = {"budget": best, "top1": metrics.rows[0].mean, "official_max": maximum, **point}
        write_atomic(folder / "sweep.json", json.dumps(results, indent=2) + "\n")
    return results


def _one(options: ListOptions, folder: Path, task: str, budget: int, final: bool) -> Metrics:
    """One run of the sweep in its own run folder, continued or read when it is there."""
    name = f"{'test' if final else 'val'}-{budget}"
    path = folder / task / name
    exists = (path / "started").is_file()
    run = RunFolder.open(path) if exists else RunFolder.create(folder, task, name)
    if run.finished:
        return Metrics.read(path / "metrics.json")
    here = replace(
        options,
        data=replace(options.data, kind="vtab", name=task, final=final),
        method=replace(options.method, budget=budget),
    )
    with run.lock():
        if process_rank() == 0:
            run.write_config({"engine": "lists", **asdict(here)})
        metrics = train_run(here, run, resume=exists)
        if process_rank() == 0:
            run.mark_finished()
        return metrics


def group_means(accuracy: Mapping[str, float]) -> list[float | None]:
    """Mean of each group that is complete, then the mean of the three means (None while one is missing)."""
    means: list[float | None] = []
    for group in GROUPS:
        members = [task for task, (_, of) in VTAB.items() if of == group]
        done = [accuracy[task] for task in members if task in accuracy]
        means.append(sum(done) / len(done) if len(done) == len(members) else None)
    whole = [m for m in means if m is not None]
    means.append(sum(whole) / 3 if len(whole) == 3 else None)
    return means


def print_sweep(results: Mapping[str, Mapping[str, float]], method: str) -> None:
    """Per task and group, beside the paper's figures (best budget per task) and a re-run at one budget."""
    paper = published()["per_task"]
    row = "spt_adapter" if "adapter" in method else "spt_lora"
    lines: list[tuple] = []
    for task, point in results.items():
        lines.append(
            (
                task,
                VTAB[task][1],
                point["budget"],
                point["top1"],
                point["official_max"],
                paper[row][task],
                paper["rerun_at_0.4M"][task],
            )
        )
    ours = group_means({task: point["top1"] for task, point in results.items()})
    best = group_means({task: point["official_max"] for task, point in results.items()})
    theirs, rerun = group_means(paper[row]), group_means(paper["rerun_at_0.4M"])
    for name, a, b, c, d in zip((*GROUPS, "mean of groups"), ours, best, theirs, rerun, strict=True):
        lines.append((name, "", None, a, b, c, d))
    columns = (
        "task",
        "group",
        "budget",
        "top-1, last epoch",
        "max over epochs",
        f"paper, {row}",
        "a user's re-run at 0.4 M",
    )
    table(lines, columns, "VTAB-1k; the paper's row is the maximum over epochs at the best budget of each task")
