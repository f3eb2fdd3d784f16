"""The `snnet` command: its engines and its own verbs, each a module that is imported when it is asked for."""

import sys

from paperkit.command import engines
from paperkit.command.cli import Verb
from paperkit.command.engines import Engine

TITLE = "SN-Net: pretrained models stitched into one network (arXiv 2302.06586)"
KINDS = "snnet.verification.kinds"
ENGINES = {
    "digits": Engine("embedded experiment on handwritten digits", "snnet.experiment.engine"),
    "images": Engine("stitched network on real images, Lightning", "snnet.training.images"),
}
VERBS = {
    "list": Verb("list configurations: anchors, cut, multiply-adds, parameters, accuracy", "snnet.commands.list"),
    "select": Verb(
        "choose the best configuration within budgets of multiply-adds, parameters, latency", "snnet.commands.select"
    ),
    "predict": Verb("classify images with one configuration", "snnet.commands.predict"),
    "export": Verb("write one configuration with only its own parameters (torch or ONNX)", "snnet.commands.export"),
    "latency": Verb("measure every configuration on this machine", "snnet.commands.latency"),
    "convert": Verb("turn the authors' checkpoints into this package's form and back", "snnet.commands.convert"),
    "bench": Verb("speed and memory against the baselines, as ratios of one run", "snnet.commands.bench"),
}


def main() -> None:
    """Entry point of the console script."""
    sys.exit(engines.main("snnet", TITLE, ENGINES, VERBS, KINDS))
