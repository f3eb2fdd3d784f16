"""The `spt` command: its verbs, each in a module of `spt.commands` that is imported when it is asked for."""

import sys

from paperkit.command.cli import Verb
from paperkit.command.cli import main as run_verb

VERBS = {
    "train": Verb("run the embedded experiment, or tune a backbone on real data (--config)", "spt.commands.train"),
    "eval": Verb("evaluate a run from its saved weights: table, metrics.json, figures", "spt.commands.eval"),
    "figures": Verb("draw the figures of a run again", "spt.commands.figures"),
    "sweep": Verb("the 19 tasks of VTAB-1k, beside the paper's table", "spt.commands.sweep"),
    "allocate": Verb("spend a budget on saved sensitivities, or read a released selection", "spt.commands.allocate"),
    "convert": Verb("convert released backbone files to safetensors and back", "spt.commands.convert"),
    "export": Verb("merge a delta: plain weights, torch.export, ONNX, or peft's LoRA", "spt.commands.export"),
    "predict": Verb("classify images with a delta on its backbone", "spt.commands.predict"),
    "serve": Verb("many deltas on one backbone, switched exactly between requests", "spt.commands.serve"),
    "bench": Verb("time and memory against the baselines, as ratios of one run", "spt.commands.bench"),
    "verify": Verb("recompute reference files and compare", "spt.commands.verify"),
}


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_verb("spt", "SPT: a fine-tuning budget spent where the task is sensitive (arXiv 2303.08566)", VERBS))
