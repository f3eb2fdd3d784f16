"""Segment pictures: writes NAME_overlay.png and NAME_labels.png (class numbers) of each, and prints what it shows.

--ckpt   a run folder of the segmentation engine, a folder of save_pretrained, or a released file
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("images", nargs="+", type=str, help="image files")
    parser.add_argument("--ckpt", type=str, required=True, help="run folder, folder of save_pretrained, released file")
    parser.add_argument("--output", type=str, default="runs/faseg/predict", help="folder for the pictures")
    parser.add_argument("--top", type=int, default=5, help="classes to print")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--trust-pickle", action="store_true", help="read weights whose file may run code")


def run(arguments: Any) -> int:
    from io import BytesIO
    from pathlib import Path

    import numpy as np
    from PIL import Image

    from faseg.deployment.prediction import names_of, overlay, segment_file, shares
    from faseg.models.conversion import load_network
    from paperkit.command.engines import device, refuse_below_one
    from paperkit.errors import UserError
    from paperkit.files.atomic import write_atomic

    refuse_below_one(arguments, ["top"])
    stems = [Path(path).stem for path in arguments.images]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise UserError(f"two images would both be written as {twice[0]}_overlay.png; segment them one by one")
    model = load_network(arguments.ckpt, arguments.trust_pickle).to(device(arguments.device))
    names, folder = names_of(model), Path(arguments.output)
    for path, stem in zip(arguments.images, stems, strict=True):
        picture, labels = segment_file(model, path)
        kind = np.uint8 if len(names) <= 256 else np.uint16
        drawn = {"overlay": overlay(picture, labels, names), "labels": Image.fromarray(labels.astype(kind))}
        for name, image in drawn.items():
            buffer = BytesIO()
            image.save(buffer, "PNG")
            write_atomic(folder / f"{stem}_{name}.png", buffer.getvalue())
        seen = list(shares(labels, names).items())[: arguments.top]
        told = ", ".join(f"{names[index]} {100 * share:.1f} %" for index, share in seen)
        print(f"{path}: {told} -> {folder / f'{stem}_overlay.png'}")
    return 0
