"""Classify images, by a simulated or a packed network."""

from typing import Any


def add_arguments(parser: Any) -> None:
    from bivit.commands.checkpoint import add_checkpoint_arguments

    parser.add_argument("images", nargs="+", type=str, help="image files")
    add_checkpoint_arguments(parser)
    parser.add_argument("--packed", action="store_true", help="run the network from bits, as `bivit pack` makes it")
    parser.add_argument("--size", type=int, default=224, help="side of the centre crop in px, that of training")
    parser.add_argument("--top", type=int, default=5, help="classes to print")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")


def run(arguments: Any) -> int:
    import torch

    from bivit.commands.checkpoint import classifier_of
    from bivit.models.classifier import packed
    from bivit.models.images import read_images
    from paperkit.command.engines import device
    from paperkit.errors import UserError

    for name in ("size", "top"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: 1 at least")
    on = device(arguments.device)
    model = classifier_of(arguments).to(on)
    model = packed(model) if arguments.packed else model
    images = read_images(arguments.images, arguments.size).to(on)
    try:
        with torch.no_grad():
            shares = model(images).softmax(-1)
    except AssertionError as error:  # timm's way of saying that the size is another
        raise UserError(f"--size {arguments.size}: {error}") from None
    values, classes = shares.topk(min(arguments.top, shares.shape[-1]))
    for path, numbers, found in zip(arguments.images, classes.tolist(), values.tolist(), strict=True):
        told = (f"class {i} {100 * share:.1f} %" for i, share in zip(numbers, found, strict=True))
        print(f"{path}: " + ", ".join(told))
    return 0
