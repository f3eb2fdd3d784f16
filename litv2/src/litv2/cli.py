"""The `litv2` command: its verbs, each in a module of `litv2.commands` that is imported when it is asked for."""

import sys

from paperkit.command.cli import Verb
from paperkit.command.cli import main as run_verb

VERBS = {
    "train": Verb("train the embedded experiment, or what the --config file asks for", "litv2.commands.train"),
    "eval": Verb("evaluate a run: tables, metrics.json, figures", "litv2.commands.eval"),
    "figures": Verb("draw the figures of a run again", "litv2.commands.figures"),
    "bench": Verb("speed and memory against the baselines, as ratios of one run", "litv2.commands.bench"),
    "convert": Verb("released checkpoint file to a folder of save_pretrained, and back", "litv2.commands.convert"),
    "export": Verb("write a classifier as ONNX or torch.export program", "litv2.commands.export"),
    "predict": Verb("classify images; try another window", "litv2.commands.predict"),
    "verify": Verb("recompute reference files and compare", "litv2.commands.verify"),
}  # fmt: skip


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_verb("litv2", "LITv2: fast vision transformers with HiLo attention (arXiv 2205.13213)", VERBS))
