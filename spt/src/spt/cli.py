"""The `spt` command: the engines that train, and the verbs that are SPT's own."""

import sys

from paperkit.command import engines
from paperkit.command.cli import Verb
from paperkit.command.engines import Engine
from spt.commands import sweep

ENGINES = {
    "digits": Engine("embedded experiment on handwritten digits", "spt.experiment.engine"),
    "lists": Engine("VTAB-1k, FGVC and few-shot lists of images, Lightning", "spt.training.lists"),
    "segmentation": Engine("ADE20K with SETR-PUP, Lightning", "spt.training.segmentation"),
    "sweep": sweep.ENGINE,
}
VERBS = {
    "sweep": Verb("the 19 tasks of VTAB-1k, beside the paper's table (train --engine sweep)", sweep.main),
    "allocate": Verb("spend a budget on saved sensitivities, or read a released selection", "spt.commands.allocate"),
    "convert": Verb("convert released backbone files to safetensors and back", "spt.commands.convert"),
    "export": Verb("merge a delta: plain weights, torch.export, ONNX, or peft's LoRA", "spt.commands.export"),
    "predict": Verb("classify images with a delta on its backbone", "spt.commands.predict"),
    "serve": Verb("many deltas on one backbone, switched exactly between requests", "spt.commands.serve"),
    "bench": Verb("time and memory against the baselines, as ratios of one run", "spt.commands.bench"),
}
DESCRIPTION = "SPT: a fine-tuning budget spent where the task is sensitive (arXiv 2303.08566)"


def main() -> None:
    """Entry point of the console script."""
    sys.exit(engines.main("spt", DESCRIPTION, ENGINES, VERBS, kinds="spt.verification.kinds"))
