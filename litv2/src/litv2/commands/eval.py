"""Evaluate a run from its saved weights: the newest finished one, or a run folder."""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("--ckpt", type=str | None, default=None, help="run folder (default: the newest finished run)")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")


def run(arguments: Any) -> int:
    import json
    import time

    from paperkit.runs import resolve_run

    from litv2.commands.embedded import COSTS
    from litv2.commands.run_folders import finish, read_experiment

    start = time.monotonic()
    folder, _ = resolve_run(arguments.ckpt, arguments.root, "litv2")
    assert folder is not None
    config = read_experiment(folder)
    import torch

    from litv2.experiment import measure_seed

    torch.set_num_threads(1)
    results = [measure_seed(seed, folder.path, config) for seed in config.seed_list]
    costs = json.loads((folder.path / COSTS).read_text())  # the clock ran while training; its numbers stand
    finish(folder, results, costs, config, "litv2 eval", time.monotonic() - start)
    return 0
