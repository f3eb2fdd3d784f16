"""Classify images with an extracted sub-network, or with an architecture of a supernet."""

from typing import Any


def add_arguments(parser: Any) -> None:
    from focusformer.commands.subnet_options import add_subnet_options

    parser.add_argument("images", nargs="+", type=str, help="image files")
    add_subnet_options(parser)
    parser.add_argument("--top", type=int, default=5, help="classes to print")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")


def run(arguments: Any) -> int:
    from focusformer.commands.subnet_options import subnet_of
    from focusformer.deployment.prediction import likeliest, read_images
    from paperkit.command.engines import device
    from paperkit.errors import UserError

    if arguments.top < 1:
        raise UserError(f"--top {arguments.top}: 1 class at least")
    on = device(arguments.device)
    model = subnet_of(arguments).to(on)
    found = likeliest(model, read_images(arguments.images, model).to(on), arguments.top)
    for path, classes in zip(arguments.images, found, strict=True):
        print(f"{path}: " + ", ".join(f"class {i} {100 * share:.1f} %" for i, share in classes))
    return 0
