"""Classify images with a delta on its backbone: `spt predict IMAGE... --delta DIR --file BACKBONE`."""

from __future__ import annotations

from typing import Any


def add_arguments(parser: Any) -> None:
    """Options."""
    from spt.commands.task_options import add_task_arguments

    parser.add_argument("images", nargs="+", type=str, help="image files")
    parser.add_argument("--delta", type=str, required=True, help="delta folder (RUN/delta)")
    parser.add_argument("--top", type=int, default=5, help="classes to print")
    add_task_arguments(parser)


def run(arguments: Any) -> None:
    """One line an image."""
    from spt.deployment.task_model import open_task, read_image, top_classes

    tuned = open_task(arguments.delta, arguments.file, arguments.arch, arguments.trust_pickle)
    size = image_size(tuned.base)
    for path in arguments.images:
        top = top_classes(tuned, read_image(path, size), arguments.top)
        print(f"{path}: " + ", ".join(f"class {c} {p:.1f} %" for c, p in top))


def image_size(model: Any) -> int:
    """Pixels of the model's input."""
    return int(model.patch_embed.img_size[0]) if hasattr(model, "patch_embed") else 224
