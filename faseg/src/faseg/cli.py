"""The `faseg` command: its engines and its own verbs; train, eval, figures and verify are paperkit's."""

import sys

from paperkit.command import engines
from paperkit.command.cli import Verb
from paperkit.command.engines import Engine

ENGINES = {
    "scenes": Engine("embedded experiment: four decoders on scenes of digits", "faseg.experiment.engine"),
    "segmentation": Engine(
        "semantic segmentation of real pictures, mmengine", "faseg.training.segmentation", configs=".py"
    ),
}
VERBS = {
    "bench": Verb("speed and memory against the baselines, as ratios of one run", "faseg.commands.bench"),
    "convert": Verb("released checkpoint file to a folder of save_pretrained, and back", "faseg.commands.convert"),
    "export": Verb("write a network as ONNX or torch.export program", "faseg.commands.export"),
    "predict": Verb("segment pictures: overlays and label maps", "faseg.commands.predict"),
}
DESCRIPTION = "FASeg: dynamic focus-aware positional queries for semantic segmentation (arXiv 2204.01244)"


def main() -> None:
    """Entry point of the console script."""
    sys.exit(engines.main("faseg", DESCRIPTION, ENGINES, VERBS, kinds="faseg.verification.kinds"))
