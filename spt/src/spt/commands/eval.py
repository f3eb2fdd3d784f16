"""Evaluate a run from its saved weights: the newest finished one, or `--ckpt RUN`. Table, metrics.json, figures."""

from __future__ import annotations

import time
from typing import Any

from paperkit.errors import UserError


def add_arguments(parser: Any) -> None:
    """Options."""
    parser.add_argument("--ckpt", type=str | None, default=None, help="run folder (default: the newest finished run)")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")


def run(arguments: Any) -> None:
    """Computes every number again."""
    from paperkit.command.seeds import run_seeds
    from paperkit.files.runs import resolve_run
    from spt.commands.train import report, saved_config

    folder, file = resolve_run(arguments.ckpt, arguments.root, "spt")
    if folder is None:
        raise UserError(f"{file} lies in no run folder; name the run, or use `spt predict` for a delta")
    if "data" in (content := folder.read_config()):
        if content["data"].get("kind") == "ade20k":
            from spt.training.segmentation import evaluate_run as evaluate_segmentation
            from spt.training.train_segmentation import to_options

            evaluate_segmentation(to_options(content), folder)
            return
        from spt.training.train_real import evaluate_run

        evaluate_run(folder)
        return
    config, start = saved_config(folder), time.monotonic()
    shared = {"run": str(folder.path), "config": config}
    if not (folder.path / "backbone.safetensors").is_file():
        raise UserError(
            f"{folder.path} has no backbone.safetensors; continue it with `spt train --resume {folder.path}`"
        )
    backbone = run_seeds("spt.experiment.run:pretrain", [config.backbone_seed], shared, config.pretrain_steps)
    results = run_seeds(
        "spt.experiment.run:evaluate_seed", config.seed_list, shared, 1, processes=config.processes or None
    )
    seconds = time.monotonic() - start
    report(folder, list(results.values()), config, "spt eval", seconds, backbone[config.backbone_seed])
