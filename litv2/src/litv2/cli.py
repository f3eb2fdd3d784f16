"""The `litv2` command: its engines and its own verbs; train, eval, figures and verify are paperkit's."""

import sys

from paperkit.command import engines
from paperkit.command.cli import Verb
from paperkit.command.engines import Engine

ENGINES = {
    "digits": Engine("embedded experiment: cost, two markers, frequencies on digits", "litv2.experiment.engine"),
    "images": Engine("classifier on real images, Lightning", "litv2.training.images"),
    "detection": Engine("RetinaNet or Mask R-CNN on COCO, Lightning", "litv2.training.detection"),
    "segmentation": Engine("segmentation network, mmengine", "litv2.training.segmentation", configs=".py"),
}
VERBS = {
    "bench": Verb("speed and memory against the baselines, as ratios of one run", "litv2.commands.bench"),
    "convert": Verb("released checkpoint file to a folder of save_pretrained, and back", "litv2.commands.convert"),
    "export": Verb("write a classifier as ONNX or torch.export program", "litv2.commands.export"),
    "predict": Verb("classify images; try another window", "litv2.commands.predict"),
}
DESCRIPTION = "LITv2: fast vision transformers with HiLo attention (arXiv 2205.13213)"


def main() -> None:
    """Entry point of the console script."""
    sys.exit(engines.main("litv2", DESCRIPTION, ENGINES, VERBS, kinds="litv2.verification.kinds"))
