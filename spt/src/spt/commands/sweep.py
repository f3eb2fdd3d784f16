"""`spt sweep`: the training of the engine `sweep`, whatever engine the config files name."""

from paperkit.command import engines
from paperkit.command.engines import Engine

ENGINE = Engine("the 19 tasks of VTAB-1k on lists of images, budgets chosen on validation", "spt.training.sweep")


def main(argv: list[str], prog: str) -> int:
    """Runs every task that is not finished, and prints the table beside the paper's."""
    return engines.train("spt", {"sweep": ENGINE}, [*argv, "--engine", "sweep"], prog)
