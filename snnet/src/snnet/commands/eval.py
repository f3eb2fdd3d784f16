"""Evaluate every configuration of a run: the newest finished one, a run folder, or a weight file."""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("--ckpt", type=str | None, default=None, help="run folder or weight file (default: newest run)")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")


def run(arguments: Any) -> int:
    import time

    from paperkit.runs import resolve_run
    from snnet.commands.train import finish, from_plain
    from snnet.experiment import measure_seed

    folder, _ = resolve_run(arguments.ckpt, arguments.root, "snnet")
    start = time.monotonic()
    config = from_plain(folder.read_config())
    results = [measure_seed(seed, folder.path, config) for seed in config.seed_list]
    finish(folder, results, config, "snnet eval", time.monotonic() - start)
    return 0
