"""Ablations on digits, one setting at a time: one table, and metrics.json.

    focusformer sweep                             # every arm, three seeds
    focusformer sweep --arms '["uniform", "table policy"]' --seeds 1

The same command goes on where it was stopped. Arms are named in the table; `--arms list` prints their names.
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("--arms", type=list[str] | str, default=[], help="names of arms (default: all), or: list")
    parser.add_argument("--seeds", type=int, default=3, help="how many; the first is 1")
    parser.add_argument("--steps", type=int, default=700, help="of training, of each supernet")
    parser.add_argument("--evaluations", type=int, default=200, help="of evolution, for each budget; a multiple of 4")
    parser.add_argument("--processes", type=int, default=0, help="seeds side by side; 0: one a core")
    place = "folder, and where a stopped sweep goes on (default: runs/focusformer/sweep)"
    parser.add_argument("--output", type=str, default="runs/focusformer/sweep", help=place)


def run(arguments: Any) -> int:
    import time
    from pathlib import Path

    from focusformer.experiment.ablations import ABLATIONS, Outcome
    from paperkit.command.engines import refuse_below_one
    from paperkit.command.seeds import run_seeds
    from paperkit.errors import UserError
    from paperkit.results.metrics import Metrics, Row
    from paperkit.results.report import mean_spread, table

    if arguments.arms == "list":
        print("\n".join(ABLATIONS))
        return 0
    names = [arguments.arms] if isinstance(arguments.arms, str) else arguments.arms or list(ABLATIONS)
    if unknown := [name for name in names if name not in ABLATIONS]:
        raise UserError(f"no arm {unknown[0]!r}; `focusformer sweep --arms list` names them")
    refuse_below_one(arguments, ("seeds", "evaluations"))
    if arguments.steps < 10 or arguments.evaluations % 4:
        raise UserError(f"steps {arguments.steps}: 10 at least; evaluations {arguments.evaluations}: a multiple of 4")
    start, seeds = time.monotonic(), list(range(1, arguments.seeds + 1))
    settings = {"folder": arguments.output, "names": names, "steps": arguments.steps,
                "evaluations": arguments.evaluations}  # fmt: skip
    results: dict[int, dict[str, Outcome]] = run_seeds(
        "focusformer.experiment.ablations:run_seed", seeds, settings, len(names),
        processes=arguments.processes or None, resume_with="the same command",
    )  # fmt: skip
    shown = {"one_call": "%", "one_call_loss": "", "fits": "", "best_of_30": "%", "evolution": "%", "entropy": "",
             "feasible": "", "seconds": "s", "sampler_share": "%"}  # fmt: skip
    columns = {
        (name, field): [getattr(results[seed][name], field) for seed in seeds] for name in names for field in shown
    }
    rows = [Row(name, field.replace("_", " "), values, shown[field]) for (name, field), values in columns.items()]
    metrics = Metrics("focusformer", seeds, time.monotonic() - start, rows)
    metrics.write(Path(arguments.output) / "metrics.json")
    lines = []
    for name in names:
        accuracies = [f"{mean_spread(columns[name, field]):.1f}" for field in ("one_call", "best_of_30", "evolution")]
        rest = [mean_spread(columns[name, field]).mean
                for field in ("one_call_loss", "fits", "entropy", "feasible", "sampler_share", "seconds")]  # fmt: skip
        lines.append((name, *accuracies, *(f"{value:.2f}" for value in rest)))
    heads = (
        "arm",
        "one call %",
        "best of 30 %",
        "evolution %",
        "loss",
        "fits",
        "entropy",
        "feasible",
        "sampler %",
        "s",
    )
    title = f"Ablations on digits: test accuracy, mean of 4 budgets; {len(seeds)} seeds, {arguments.steps} steps"
    table(lines, heads, title)
    print(Path(arguments.output) / "metrics.json")
    return 0
