"""The `ecoformer` command: its engines and its own verbs; train, eval, figures and verify are paperkit's."""

import sys

from paperkit.command import engines
from paperkit.command.cli import Verb
from paperkit.command.engines import Engine

ENGINES = {
    "digits": Engine("embedded experiment: similarity, digits, cluster majority", "ecoformer.experiment.engine"),
    "images": Engine("classifier on real images, Lightning", "ecoformer.training.images"),
    "lra": Engine("Long Range Arena, Lightning", "ecoformer.training.lra"),
}
VERBS = {
    "bench": Verb("speed and memory against the baselines, as ratios of one run", "ecoformer.commands.bench"),
    "convert": Verb("released checkpoint file to a folder of save_pretrained, and back", "ecoformer.commands.convert"),
    "energy": Verb("operations and energy of a network, layer by layer", "ecoformer.commands.energy"),
    "export": Verb("write a classifier as ONNX or torch.export program", "ecoformer.commands.export"),
    "predict": Verb("classify images", "ecoformer.commands.predict"),
}
DESCRIPTION = "EcoFormer: attention in linear time over learned binary codes (arXiv 2209.09004)"


def main() -> None:
    """Entry point of the console script."""
    sys.exit(engines.main("ecoformer", DESCRIPTION, ENGINES, VERBS, kinds="ecoformer.verification.kinds"))
