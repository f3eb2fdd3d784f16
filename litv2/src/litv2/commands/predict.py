"""Classify images; --window tries another HiLo window and says how much the outputs change."""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("images", nargs="+", type=str, help="image files")
    parser.add_argument(
        "--ckpt", type=str, required=True, help="run folder, folder of save_pretrained, or released file"
    )
    parser.add_argument("--size", type=int, default=224, help="side of the centre crop in pixels, 32 at least")
    parser.add_argument("--window", type=str | None, default=None, help="HiLo window of stages with 2 or more, or auto")
    parser.add_argument("--top", type=int, default=5, help="classes to print")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--trust-pickle", action="store_true", help="read weights whose file may run code")
    parser.add_argument("--part", type=str | None, default=None, help="which of several state dicts in the file")


def run(arguments: Any) -> int:
    import torch

    from litv2.deployment.window_choice import output_change, set_window
    from litv2.models.conversion import class_names, load_classifier
    from litv2.models.images import read_images
    from paperkit.command.engines import device
    from paperkit.errors import UserError

    window, size = arguments.window, arguments.size
    if window not in (None, "auto") and not window.isdigit():
        raise UserError(f"--window {window}: give a number from 2 on, or auto")
    if size < 32:
        raise UserError(f"--size {size}: the smallest image is 32 x 32 px")
    on = device(arguments.device)
    model = load_classifier(arguments.ckpt, arguments.trust_pickle, arguments.part).to(on)
    names = class_names(arguments.ckpt, model.num_classes)
    batch = read_images(arguments.images, size).to(on)
    with torch.no_grad():
        logits = model(batch)
        if window is not None:
            chosen = set_window(model, window, size, size)
            changed = model(batch)
            relative, flipped = output_change(logits, changed)
            stages = ", ".join(f"stage {i + 1}: {s}" for i, s in chosen.items())
            print(
                f"window {stages}; logits change by {relative:.2g} of the largest, "
                f"the top class on {flipped:.0%} of the images"
            )
            logits = changed
    for path, shares in zip(arguments.images, logits.softmax(-1), strict=True):
        values, classes = shares.topk(min(arguments.top, len(shares)))
        pairs = zip(classes.tolist(), values.tolist(), strict=True)
        print(f"{path}: " + ", ".join(f"{names[i]} {100 * p:.1f} %" for i, p in pairs))
    return 0
