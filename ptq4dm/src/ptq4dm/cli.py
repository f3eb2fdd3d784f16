"""The `ptq4dm` command: its engines and its own verbs; train, eval, figures and verify are paperkit's."""

import sys

from paperkit.command import engines
from paperkit.command.cli import Verb
from paperkit.command.engines import Engine

ENGINES = {
    "digits": Engine("embedded experiment: a quantised U-Net on digits, corrected", "ptq4dm.experiment.engine"),
    "ldm": Engine("quantise a real diffusion model: calibration, rounding, statistics", "ptq4dm.training.engine"),
}
VERBS = {
    "bench": Verb("speed and memory against the baselines, as ratios of one run", "ptq4dm.commands.bench"),
    "bops": Verb("bit operations and bytes of a network, nominal and exact", "ptq4dm.commands.bops"),
    "convert": Verb("CompVis and official quantised files to ours, and back", "ptq4dm.commands.convert"),
    "export": Verb("write a quantised U-Net as ONNX or torch.export program", "ptq4dm.commands.export"),
    "pack": Verb("a self-contained folder of real integers", "ptq4dm.commands.pack"),
    "sample": Verb("draw images: a grid, PNG files, an npz", "ptq4dm.commands.sample"),
    "score": Verb("FID, sFID, IS, precision and recall of a folder of images", "ptq4dm.commands.score"),
    "statistics": Verb("look at, convert or compare noise statistics", "ptq4dm.commands.statistics"),
}
DESCRIPTION = "PTQD: post-training quantisation of diffusion models with noise correction (arXiv 2305.10657)"


def main() -> None:
    """Entry point of the console script."""
    sys.exit(engines.main("ptq4dm", DESCRIPTION, ENGINES, VERBS, kinds="ptq4dm.verification.kinds"))
