"""The `focusformer` command: its engines and its own verbs; train, eval, figures and verify are paperkit's."""

import sys

from paperkit.command import engines
from paperkit.command.cli import Verb
from paperkit.command.engines import Engine

ENGINES = {
    "digits": Engine("embedded experiment: a uniform and a focused supernet", "focusformer.experiment.engine"),
    "images": Engine("supernet on real images, Lightning", "focusformer.training.images"),
    "finetune": Engine("an extracted sub-network on real images, Lightning", "focusformer.training.finetune"),
}
VERBS = {
    "bench": Verb("speed and memory against the baselines, as ratios of one run", "focusformer.commands.bench"),
    "convert": Verb("official AutoFormer supernets to our files, and back", "focusformer.commands.convert"),
    "export": Verb("write a sub-network as ONNX or torch.export program", "focusformer.commands.export"),
    "extract": Verb("one architecture of a supernet as a plain model of its own", "focusformer.commands.extract"),
    "latency": Verb("measure the latency table of a space on this machine", "focusformer.commands.latency"),
    "predict": Verb("classify images", "focusformer.commands.predict"),
    "search": Verb("the architecture for a budget: one sampler call, or a search", "focusformer.commands.search"),
    "sweep": Verb("ablations of the sampler, one table", "focusformer.commands.sweep"),
}
DESCRIPTION = "FocusFormer: one sampler call instead of a search (arXiv 2208.10861)"


def main() -> None:
    """Entry point of the console script."""
    sys.exit(engines.main("focusformer", DESCRIPTION, ENGINES, VERBS, kinds="focusformer.verification.kinds"))
