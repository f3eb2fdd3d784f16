"""Evaluate a run from its saved weights: the newest finished one, or a run folder. Image runs: top-1 and top-5."""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("--ckpt", type=str | None, default=None, help="run folder (default: the newest finished run)")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")


def run(arguments: Any) -> int:
    import json
    import time

    from litv2.commands.embedded import COSTS
    from litv2.commands.run_folders import finish, read_experiment
    from paperkit.errors import UserError
    from paperkit.runs import resolve_run

    start = time.monotonic()
    folder, _ = resolve_run(arguments.ckpt, arguments.root, "litv2")
    if folder is None:
        raise UserError(f"{arguments.ckpt} lies in no run folder")
    content = folder.read_config()
    if "data" in content and "network" in content:
        return evaluate_images(folder.path, content)
    config = read_experiment(folder)
    import torch

    from litv2.experiment import measure_seed

    torch.set_num_threads(1)
    results = [measure_seed(seed, folder.path, config) for seed in config.seed_list]
    costs = json.loads((folder.path / COSTS).read_text())  # the clock ran while training; its numbers stand
    finish(folder, results, costs, config, "litv2 eval", time.monotonic() - start)
    return 0


def evaluate_images(run: Any, content: dict[str, Any]) -> int:
    """Top-1 and top-5 of an image run's last weights on its validation images."""
    import torch

    from litv2.classifier import LITv2
    from litv2.image_training import evaluate, folder_of
    from paperkit.image_data import ImageData
    from paperkit.report import table

    model = LITv2.from_pretrained(folder_of(run))
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in content["data"].items()}
    found = evaluate(model, ImageData(**options), "cuda" if torch.cuda.is_available() else "cpu")
    table([(name, value) for name, value in found.items()], ("metric", "%"), str(run))
    return 0
