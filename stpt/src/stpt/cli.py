"""The `stpt` command: its engines and its own verbs; train, eval, figures and verify are paperkit's."""

import sys

from paperkit.command import engines
from paperkit.command.cli import Verb
from paperkit.command.engines import Engine

ENGINES = {
    "clips": Engine("embedded experiment: local and global attention on moving digits", "stpt.experiment.engine"),
    "detection": Engine("temporal action detection in videos, mmengine", "stpt.training.detection", configs=".py"),
}
VERBS = {
    "annotations": Verb("check or convert a file of annotations", "stpt.commands.annotations"),
    "bench": Verb("speed and memory against the baselines, as ratios of one run", "stpt.commands.bench"),
    "convert": Verb("AFSD and MViT checkpoint files to ours, and back", "stpt.commands.convert"),
    "detect": Verb("actions of a video file: JSON and a timeline", "stpt.commands.detect"),
    "export": Verb("write a detector as ONNX or torch.export program", "stpt.commands.export"),
    "features": Verb("features of a video file from the backbone", "stpt.commands.features"),
    "flops": Verb("parameters, multiply-accumulates and speed of a network", "stpt.commands.flops"),
    "prepare": Verb("videos to arrays of frames, as training reads them", "stpt.commands.prepare"),
    "score": Verb("mAP and errors of a file of detections", "stpt.commands.score"),
}
DESCRIPTION = "STPT: efficient spatio-temporal pyramid transformer for action detection (arXiv 2207.10448)"


def main() -> None:
    """Entry point of the console script."""
    sys.exit(engines.main("stpt", DESCRIPTION, ENGINES, VERBS, kinds="stpt.verification.kinds"))
