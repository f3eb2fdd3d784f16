"""The `spt` command: its verbs, each in a module of `spt.commands` that is imported when it is asked for."""

import sys

from paperkit.cli import Verb
from paperkit.cli import main as run_verb

VERBS = {
    "train": Verb("run the embedded experiment, or tune a backbone on real data (--config)", "spt.commands.train"),
    "eval": Verb("evaluate a run from its saved weights: table, metrics.json, figures", "spt.commands.eval"),
    "figures": Verb("draw the figures of a run again", "spt.commands.figures"),
    "verify": Verb("recompute reference files and compare", "spt.commands.verify"),
}


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_verb("spt", "SPT: a fine-tuning budget spent where the task is sensitive (arXiv 2303.08566)", VERBS))
