"""`litv2 train` without a config of real data: the embedded experiment."""

import json
import time
from typing import Any

from litv2.experiment.settings import ExperimentConfig
from paperkit.command.run_options import RUN_OPTIONS, add_run_options

COSTS = "costs.json"


def add_arguments(parser: Any) -> None:
    """Options of the embedded experiment."""
    add_run_options(parser)
    parser.add_class_arguments(ExperimentConfig)


def run(arguments: Any) -> int:
    """Parts B and C seed by seed, side by side; then part A on a quiet machine."""
    from dataclasses import asdict

    from litv2.experiment.run_folders import finish, open_run, read_experiment
    from paperkit.command.seeds import run_seeds
    from paperkit.errors import UserError
    from paperkit.files.runs import write_atomic

    options = {k: v for k, v in vars(arguments).items() if k not in RUN_OPTIONS}
    config = check(ExperimentConfig(**options))
    folder = open_run(arguments.root, arguments.name, arguments.resume)
    start = time.monotonic()
    with folder.lock():
        if arguments.resume:
            config = read_experiment(folder)
        else:
            folder.write_config(asdict(config))
            folder.write_environment()
        print(f"run folder {folder.path}: {config.seeds} seeds of {config.total_steps:,} steps", flush=True)
        results = run_seeds(
            "litv2.experiment.run:run_seed",
            config.seed_list,
            {"run": str(folder.path), "config": config},
            config.total_steps,
            processes=config.processes or None,
            resume_with=f"litv2 train --resume {folder.path}",
        )
        from litv2.experiment.single_layer import part_a

        print("part A: attention layers on the clock", flush=True)
        costs = part_a(config.timing_pairs)
        write_atomic(folder.path / COSTS, json.dumps(costs, indent=1) + "\n")
        if any(result is None for result in results.values()):
            raise UserError("a seed gave no result")
        finish(folder, list(results.values()), costs, config, "litv2 train", time.monotonic() - start)
        folder.mark_finished()
    return 0


def check(config: ExperimentConfig) -> ExperimentConfig:
    """The settings, if they can be run.

    Raises:
        UserError: the first that cannot.
    """
    from paperkit.errors import UserError

    for name in ("seeds", "marker_steps", "digit_steps", "batch_size", "marker_test"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} {getattr(config, name)} is below 1")
    for alpha in config.alphas:
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha {alpha} is outside [0, 1]; it is the share of heads in the Lo-Fi group")
    if not {0.0, 0.5} <= set(config.alphas):
        raise UserError(f"alphas {list(config.alphas)} must hold 0 and 0.5, which the claims compare")
    return config
