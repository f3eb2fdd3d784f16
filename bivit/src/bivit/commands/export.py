"""Export a classifier with free batch size: a torch.export program or ONNX, checked after writing.

The network is the simulated one, with float weights; for one bit per weight there is `bivit pack`.
"""

from typing import Any

LARGEST_DIFFERENCE = 1e-3  # of a logit


def add_arguments(parser: Any) -> None:
    from bivit.commands.checkpoint import add_checkpoint_arguments

    add_checkpoint_arguments(parser)
    parser.add_argument("--to", choices=["torch", "onnx"], default="torch", help="what to write")
    parser.add_argument("--size", type=int, default=224, help="side of the image in px")
    parser.add_argument("--output", type=str | None, default=None, help="folder (default: runs/bivit/export/NAME)")


def run(arguments: Any) -> int:
    from pathlib import Path

    from bivit.commands.checkpoint import classifier_of
    from bivit.deployment.exporting import export
    from paperkit.errors import UserError

    if arguments.size < 1:
        raise UserError(f"--size {arguments.size}: 1 px at least")
    folder = Path(arguments.output or Path("runs/bivit/export") / Path(arguments.ckpt).stem)
    path, difference = export(classifier_of(arguments), folder, arguments.to, arguments.size)
    if difference > LARGEST_DIFFERENCE:
        raise UserError(f"{path}: a logit differs from PyTorch's by {difference:.2g}, above {LARGEST_DIFFERENCE}")
    size = path.stat().st_size / 2**20
    print(f"{path}: {size:.1f} MiB, logits differ from PyTorch's by {difference:.2g} at most")
    return 0
