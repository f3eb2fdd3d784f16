"""Export a network as a torch.export program or ONNX, checked after writing; the number of pictures is free."""

from typing import Any

LARGEST_DIFFERENCE = 1e-3  # of a logit


def add_arguments(parser: Any) -> None:
    parser.add_argument("--ckpt", type=str, required=True, help="run folder, folder of save_pretrained, released file")
    parser.add_argument("--to", choices=["torch", "onnx"], default="torch", help="what to write")
    size = "height and width, multiples of 32 (default: any for a program of a ResNet's network, else 512 512)"
    parser.add_argument("--size", nargs=2, type=int, default=None, help=size)
    parser.add_argument("--output", type=str | None, default=None, help="folder (default: runs/faseg/export/NAME)")
    parser.add_argument("--trust-pickle", action="store_true", help="read weights whose file may run code")


def run(arguments: Any) -> int:
    from pathlib import Path

    from faseg.deployment.exporting import free_sizes, to_onnx, to_program
    from faseg.models.conversion import load_network
    from paperkit.errors import UserError

    folder = Path(arguments.output or Path("runs/faseg/export") / Path(arguments.ckpt).stem)
    model = load_network(arguments.ckpt, arguments.trust_pickle)
    path = folder / ("model.pt2" if arguments.to == "torch" else "model.onnx")
    size = tuple(arguments.size or (512, 512))
    if arguments.to == "onnx":
        difference = to_onnx(model, path, size)
    else:
        difference = to_program(model, path, None if free_sizes(model) and not arguments.size else size)
    if difference > LARGEST_DIFFERENCE:
        raise UserError(f"{path}: a logit differs from PyTorch's by {difference:.2g}, above {LARGEST_DIFFERENCE}")
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, logits differ from PyTorch's by {difference:.2g} at most")
    return 0
