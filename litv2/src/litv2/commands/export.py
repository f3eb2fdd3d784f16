"""Export a classifier with free batch and image size: a torch.export program or ONNX, checked after writing."""

from typing import Any

LARGEST_DIFFERENCE = 1e-4  # of a logit


def add_arguments(parser: Any) -> None:
    weights = "run folder, folder of save_pretrained, or released file"
    parser.add_argument("--ckpt", type=str, required=True, help=weights)
    parser.add_argument("--to", choices=["torch", "onnx"], default="torch", help="what to write")
    parser.add_argument("--output", type=str | None, default=None, help="folder (default: runs/litv2/export/NAME)")
    parser.add_argument("--trust-pickle", action="store_true", help="read weights whose file may run code")
    parser.add_argument("--part", type=str | None, default=None, help="which of several state dicts in the file")


def run(arguments: Any) -> int:
    from pathlib import Path

    from litv2.deployment.exporting import to_onnx, to_program
    from litv2.models.conversion import load_classifier
    from paperkit.errors import UserError

    folder = Path(arguments.output or Path("runs/litv2/export") / Path(arguments.ckpt).stem)
    model = load_classifier(arguments.ckpt, arguments.trust_pickle, arguments.part)
    path = folder / ("model.pt2" if arguments.to == "torch" else "model.onnx")
    difference = to_program(model, path) if arguments.to == "torch" else to_onnx(model, path)
    if difference > LARGEST_DIFFERENCE:
        raise UserError(f"{path}: a logit differs from PyTorch's by {difference:.2g}, above {LARGEST_DIFFERENCE}")
    size = path.stat().st_size / 2**20
    print(f"{path}: {size:.1f} MiB, logits differ from PyTorch's by {difference:.2g} at most")
    return 0
