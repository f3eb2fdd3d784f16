"""The `bivit` command: its engines and its own verbs; train, eval, figures and verify are paperkit's."""

import sys

from paperkit.command import engines
from paperkit.command.cli import Verb
from paperkit.command.engines import Engine

ENGINES = {
    "digits": Engine("embedded experiment: binary digit transformers", "bivit.experiment.engine"),
    "images": Engine("classifier on real images, Lightning", "bivit.training.images"),
    "detection": Engine("Mask R-CNN over a binary Swin-T, Lightning", "bivit.training.detection"),
}
VERBS = {
    "bench": Verb("speed and memory against the baselines, as ratios of one run", "bivit.commands.bench"),
    "convert": Verb("timm, DeiT or Swin weights to a folder of save_pretrained, and back", "bivit.commands.convert"),
    "export": Verb("write a simulated binary classifier as ONNX or torch.export program", "bivit.commands.export"),
    "pack": Verb("write a checkpoint with one bit per binary weight", "bivit.commands.pack"),
    "predict": Verb("classify images", "bivit.commands.predict"),
    "size": Verb("bytes and operations, as the paper counts them and truly", "bivit.commands.size"),
}
DESCRIPTION = "BiViT: vision transformers of one bit, on real bits (arXiv 2211.07091)"


def main() -> None:
    """Entry point of the console script."""
    sys.exit(engines.main("bivit", DESCRIPTION, ENGINES, VERBS, kinds="bivit.verification.kinds"))
