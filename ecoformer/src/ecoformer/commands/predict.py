"""Classify images."""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("images", nargs="+", type=str, help="image files")
    weights = "run folder, folder of save_pretrained, or released file"
    parser.add_argument("--ckpt", type=str, required=True, help=weights)
    parser.add_argument("--size", type=int, default=224, help="side of the centre crop in pixels, 32 at least")
    parser.add_argument("--top", type=int, default=5, help="classes to print")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--trust-pickle", action="store_true", help="read weights whose file may run code")


def run(arguments: Any) -> int:
    from ecoformer.deployment.prediction import read_images, top_classes
    from ecoformer.models.conversion import load_classifier
    from paperkit.command.engines import device
    from paperkit.errors import UserError

    if arguments.size < 32:
        raise UserError(f"--size {arguments.size}: the smallest image is 32 x 32 px")
    if arguments.top < 1:
        raise UserError(f"--top {arguments.top}: 1 class at least")
    on = device(arguments.device)
    model = load_classifier(arguments.ckpt, arguments.trust_pickle).to(on)
    found = top_classes(model, read_images(arguments.images, arguments.size).to(on), arguments.top)
    for path, classes in zip(arguments.images, found, strict=True):
        print(f"{path}: " + ", ".join(f"class {i} {100 * share:.1f} %" for i, share in classes))
    return 0
