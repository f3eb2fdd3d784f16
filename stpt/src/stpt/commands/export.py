"""Export a detector with its decoding as a torch.export program or ONNX, checked after writing; any batch."""

from typing import Any

LARGEST_DIFFERENCE = 1e-2  # of a segment's end in frames, or of a score


def add_arguments(parser: Any) -> None:
    parser.add_argument("--ckpt", type=str, required=True, help="run folder or weights, as for detect")
    parser.add_argument("--to", choices=["torch", "onnx"], default="torch", help="what to write")
    parser.add_argument("--output", type=str | None, default=None, help="folder (default: runs/stpt/export/NAME)")
    parser.add_argument("--trust-pickle", action="store_true", help="read weights whose file may run code")


def run(arguments: Any) -> int:
    from pathlib import Path

    from paperkit.errors import UserError
    from stpt.deployment.exporting import to_onnx, to_program
    from stpt.models.conversion import load_network

    folder = Path(arguments.output or Path("runs/stpt/export") / Path(arguments.ckpt).stem)
    network = load_network(arguments.ckpt, trust_pickle=arguments.trust_pickle)
    path = folder / ("model.pt2" if arguments.to == "torch" else "model.onnx")
    difference = (to_program if arguments.to == "torch" else to_onnx)(network, path)
    if difference > LARGEST_DIFFERENCE:
        raise UserError(f"{path}: an output differs from PyTorch's by {difference:.2g}, above {LARGEST_DIFFERENCE}")
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, outputs differ from PyTorch's by {difference:.2g} at most")
    return 0
