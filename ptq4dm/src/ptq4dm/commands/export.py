"""Export a quantised U-Net for any batch up to 63: a torch.export program or ONNX, checked after writing.

The network is the simulated one, with weights on their grid in float; for integers there is `ptq4dm pack`. Of a mixed
schedule the widths that are in use last are written.
"""

from typing import Any

from ptq4dm.commands.run_options import add_run_options

LARGEST_DIFFERENCE = 0.02  # root mean square, of that of the outputs: codes at a tie


def add_arguments(parser: Any) -> None:
    add_run_options(parser)
    parser.add_argument("--to", choices=["torch", "onnx"], default="torch", help="what to write")
    parser.add_argument("--output", type=str, default="runs/ptq4dm/export", help="folder to write")


def run(arguments: Any) -> int:
    from pathlib import Path

    from paperkit.errors import UserError
    from ptq4dm.deployment.exporting import export
    from ptq4dm.deployment.quantised_run import open_quantised

    source = open_quantised(Path(arguments.ckpt), arguments.seed, arguments.width, arguments.model)
    path, difference, scale = export(source.unet, Path(arguments.output), arguments.to)
    if not difference <= LARGEST_DIFFERENCE * scale:
        raise UserError(f"{path}: differs from PyTorch's by {difference / scale:.2g} of the outputs' root mean square")
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, differs from PyTorch's by {difference / scale:.2g} "
          "of the outputs' root mean square")  # fmt: skip
    return 0
