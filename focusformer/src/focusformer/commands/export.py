"""Export a sub-network with free batch size: a torch.export program or ONNX, checked after writing."""

from typing import Any


def add_arguments(parser: Any) -> None:
    from focusformer.commands.subnet_options import add_subnet_options

    add_subnet_options(parser)
    parser.add_argument("--to", choices=["torch", "onnx"], default="torch", help="what to write")
    place = "folder (default: runs/focusformer/export/NAME)"
    parser.add_argument("--output", type=str | None, default=None, help=place)


def run(arguments: Any) -> int:
    from pathlib import Path

    from focusformer.commands.subnet_options import subnet_of
    from focusformer.deployment.exporting import export

    folder = Path(arguments.output or Path("runs/focusformer/export") / Path(arguments.ckpt).stem)
    path, difference = export(subnet_of(arguments), folder, arguments.to)
    size = path.stat().st_size / 2**20
    print(f"{path}: {size:.1f} MiB, logits differ from PyTorch's by {difference:.2g} at most")
    return 0
