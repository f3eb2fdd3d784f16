"""The `snnet` command: its verbs, each in a module of `snnet.commands` that is imported when it is asked for."""

import sys

from paperkit.command.cli import Verb
from paperkit.command.cli import main as run_verb

VERBS = {
    "train": Verb(
        "train the embedded experiment, or a stitched network on real data (--config)", "snnet.commands.train"
    ),
    "eval": Verb("evaluate every configuration of a run: table, metrics.json, figures", "snnet.commands.eval"),
    "list": Verb("list configurations: anchors, cut, multiply-adds, parameters, accuracy", "snnet.commands.list"),
    "select": Verb(
        "choose the best configuration within budgets of multiply-adds, parameters, latency", "snnet.commands.select"
    ),
    "predict": Verb("classify images with one configuration", "snnet.commands.predict"),
    "export": Verb("write one configuration with only its own parameters (torch or ONNX)", "snnet.commands.export"),
    "figures": Verb("draw the figures of a run again", "snnet.commands.figures"),
    "latency": Verb("measure every configuration on this machine", "snnet.commands.latency"),
    "convert": Verb("turn the authors' checkpoints into this package's form and back", "snnet.commands.convert"),
    "bench": Verb("speed and memory against the baselines, as ratios of one run", "snnet.commands.bench"),
    "verify": Verb("recompute reference files and compare", "snnet.commands.verify"),
}


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_verb("snnet", "SN-Net: pretrained models stitched into one network (arXiv 2302.06586)", VERBS))
