"""Classify images; --window tries another HiLo window and says how much the outputs change."""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("weights", type=str, help="folder of save_pretrained, run folder's model/, or released file")
    parser.add_argument("images", nargs="+", type=str, help="image files")
    parser.add_argument("--size", type=int, default=224, help="side of the centre crop in pixels, 32 at least")
    parser.add_argument("--window", type=str | None, default=None, help="HiLo window of stages with 2 or more, or auto")
    parser.add_argument("--top", type=int, default=5, help="classes to print")
    parser.add_argument("--trust-pickle", action="store_true", help="read a pickle that can run code")


def run(arguments: Any) -> int:
    from pathlib import Path

    import torch
    from PIL import Image
    from timm.data import create_transform

    from litv2.method.window_choice import output_change, set_window
    from litv2.models.conversion import load_classifier
    from paperkit.errors import UserError

    window, size = arguments.window, arguments.size
    if window not in (None, "auto") and not window.isdigit():
        raise UserError(f"--window {window}: give a number from 2 on, or auto")
    if size < 32:
        raise UserError(f"--size {size}: the smallest image is 32 x 32 px")
    model = load_classifier(Path(arguments.weights), arguments.trust_pickle)
    transform = create_transform(size, crop_pct=0.875, interpolation="bicubic")
    try:
        batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in arguments.images])
    except OSError as error:
        raise UserError(f"cannot read an image: {error}") from error
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
        found = shares.topk(min(arguments.top, len(shares)))
        print(
            f"{path}: "
            + ", ".join(f"class {i} {100 * p:.1f} %" for p, i in zip(*map(torch.Tensor.tolist, found), strict=True))
        )
    return 0
