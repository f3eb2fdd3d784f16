"""Classify images with a delta on its backbone: `spt predict IMAGE... --ckpt RUN --file BACKBONE`."""

from typing import Any


def add_arguments(parser: Any) -> None:
    """Options."""
    from spt.commands.task_options import add_task_arguments

    parser.add_argument("images", nargs="+", type=str, help="image files")
    add_task_arguments(parser)
    parser.add_argument("--top", type=int, default=5, help="classes to print")


def run(arguments: Any) -> None:
    """One line for each image."""
    from spt.deployment.task_model import delta_folder, image_size, open_task, read_image, top_classes

    folder = delta_folder(arguments.ckpt, arguments.root)
    tuned = open_task(folder, arguments.file, arguments.arch, arguments.trust_pickle, arguments.part)
    size = image_size(tuned.base)
    for path in arguments.images:
        top = top_classes(tuned, read_image(path, size), arguments.top)
        print(f"{path}: " + ", ".join(f"class {c} {p:.1f} %" for c, p in top))
