"""Export a network as a torch.export program (any size) or ONNX (one size), checked after writing."""

from typing import Any

LARGEST_DIFFERENCE = 1e-3  # of a logit


def add_arguments(parser: Any) -> None:
    parser.add_argument("--ckpt", type=str, required=True, help="run folder, folder of save_pretrained, released file")
    parser.add_argument("--to", choices=["torch", "onnx"], default="torch", help="what to write")
    parser.add_argument("--size", nargs=2, type=int, default=[512, 512], help="height and width of ONNX's pictures")
    parser.add_argument("--output", type=str | None, default=None, help="folder (default: runs/faseg/export/NAME)")
    parser.add_argument("--trust-pickle", action="store_true", help="read weights whose file may run code")


def run(arguments: Any) -> int:
    from pathlib import Path

    from faseg.deployment.exporting import to_onnx, to_program
    from faseg.models.conversion import load_network
    from paperkit.errors import UserError

    folder = Path(arguments.output or Path("runs/faseg/export") / Path(arguments.ckpt).stem)
    model = load_network(arguments.ckpt, arguments.trust_pickle)
    path = folder / ("model.pt2" if arguments.to == "torch" else "model.onnx")
    difference = to_program(model, path) if arguments.to == "torch" else to_onnx(model, path, *arguments.size)
    if difference > LARGEST_DIFFERENCE:
        raise UserError(f"{path}: a logit differs from PyTorch's by {difference:.2g}, above {LARGEST_DIFFERENCE}")
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, logits differ from PyTorch's by {difference:.2g} at most")
    return 0
