"""Export a classifier with free batch and image size: ONNX (.onnx) or torch.export (.pt2), checked after writing."""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("weights", type=str, help="folder of save_pretrained, run folder's model/, or released file")
    parser.add_argument("target", type=str, help="FILE.onnx or FILE.pt2")
    parser.add_argument("--trust-pickle", action="store_true", help="read a pickle that can run code")


def run(arguments: Any) -> int:
    from pathlib import Path

    import torch

    from litv2.deployment.exporting import export_onnx, export_program, load_program, onnx_difference, save_program
    from litv2.models.conversion import load_classifier
    from paperkit.errors import UserError

    target = Path(arguments.target)
    if target.suffix not in (".onnx", ".pt2"):
        raise UserError(f"{target} must end in .onnx or .pt2")
    model = load_classifier(Path(arguments.weights), arguments.trust_pickle)
    image = torch.randn(1, model.in_chans, 96, 64, generator=torch.Generator().manual_seed(1))
    if target.suffix == ".onnx":
        export_onnx(model, target)
        difference = onnx_difference(target, model, image)
    else:
        save_program(export_program(model), target)
        with torch.no_grad():
            expected = model(image)
            difference = ((load_program(target)(image) - expected).abs().max() / expected.abs().max()).item()
    if difference > 1e-4:
        raise UserError(f"{target} differs from PyTorch by {difference:.2g} of the largest logit, above 1e-4")
    size = target.stat().st_size / 2**20
    print(f"{target}: {size:.1f} MiB, differs from PyTorch by {difference:.2g} of the largest logit")
    return 0
