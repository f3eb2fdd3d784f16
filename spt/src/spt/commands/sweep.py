"""The 19 tasks of VTAB-1k: budgets tried on val200, the best one run on test; resumes, and prints group means beside
the paper's.

`spt sweep --config spt/configs/vtab/supervised_spt_lora.yaml --data.root DIR --backbone.file FILE --budgets
[400000,200000]`
"""

from __future__ import annotations

from typing import Any

from paperkit.command.run_options import find_run
from paperkit.errors import UserError


def add_arguments(parser: Any) -> None:
    """The options of a run on real data, and the sweep's own."""
    from spt.training.train_real import add_arguments as add_real

    add_real(parser)
    parser.add_argument("--tasks", type=list[str], default=[], help="tasks (default: all 19)")
    parser.add_argument(
        "--budgets", type=list[int], default=[], help="budgets to choose among (default: the config's one)"
    )


def run(arguments: Any) -> None:
    """Runs what is not there yet and prints the table."""
    from dataclasses import asdict

    from spt.training.image_lists import VTAB
    from spt.training.sweep import print_sweep, sweep
    from spt.training.train_real import to_options

    if unknown := [task for task in arguments.tasks if task not in VTAB]:
        raise UserError(f"no VTAB-1k task {unknown[0]!r}; there are {', '.join(VTAB)}")
    folder = find_run(arguments.root, "spt", arguments.name, arguments.resume)
    with folder.lock():
        if arguments.resume:
            content = folder.read_config()
        else:
            content = {**asdict(to_options(vars(arguments))), "tasks": arguments.tasks, "budgets": arguments.budgets}
            folder.write_config(content)
            folder.write_environment()
        options = to_options(content)
        tasks, budgets = content.get("tasks") or list(VTAB), content.get("budgets") or [options.method.budget]
        results = sweep(options, folder.path, tasks, budgets)
        print_sweep(results, options.method.structured_type)
        folder.mark_finished()
