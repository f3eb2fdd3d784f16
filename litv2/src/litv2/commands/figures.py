"""Draw the figures of a run again: an embedded run's from its numbers and networks, a classifier's from an image.

For an image run or a folder of save_pretrained: spectra of Hi-Fi and Lo-Fi, attention of one token, and where one
token of the last map samples the image.
"""

from pathlib import Path
from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("run", nargs="?", type=str, default=None, help="run folder (default: the newest finished run)")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")
    parser.add_argument("--image", type=str | None, default=None, help="image for the figures of a classifier")
    parser.add_argument("--size", type=int, default=224, help="side of its centre crop in pixels, a multiple of 32")
    parser.add_argument(
        "--cell", type=tuple[int, int] | None, default=None, help="token of the last map: [row, column]"
    )


def run(arguments: Any) -> int:
    from litv2.models.local_weights import WEIGHTS
    from paperkit.errors import UserError
    from paperkit.files.runs import resolve_run
    from paperkit.results.metrics import Metrics

    if arguments.run is not None and (Path(arguments.run) / WEIGHTS).is_file():
        return draw_classifier(Path(arguments.run), Path(arguments.run) / "figures", arguments)
    folder, _ = resolve_run(arguments.run, arguments.root, "litv2")
    if folder is None:
        raise UserError(f"{arguments.run} is not a run folder")
    if (folder.path / "model" / WEIGHTS).is_file():
        return draw_classifier(folder.path / "model", folder.path / "figures", arguments)
    metrics = Metrics.read(folder.path / "metrics.json")
    if "costs" not in metrics.extra:
        raise UserError(f"{folder.path} is no embedded run; its curves are in TensorBoard")
    for path in draw_embedded(metrics, folder.path):
        print(path)
    return 0


def draw_embedded(metrics: Any, folder: Path) -> list[Path]:
    """Every figure of an embedded run: those of its numbers, and those of the first seed's network with alpha .5."""
    from litv2.experiment.figures import draw
    from litv2.experiment.settings import arm_name
    from litv2.figures.of_a_network import draw_digit_network

    seed = metrics.seeds[0]
    weights = folder / f"seed-{seed}" / f"digits {arm_name(0.5)}" / "weights.safetensors"
    return draw(metrics, folder / "figures") + draw_digit_network(weights, seed, folder / "figures")


def draw_classifier(weights: Path, target: Path, arguments: Any) -> int:
    """The figures of a classifier on one image."""
    import torch
    from PIL import Image
    from timm.data import create_transform
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    from litv2.figures.of_a_network import draw_pyramid
    from litv2.models.conversion import load_classifier
    from paperkit.errors import UserError

    if arguments.image is None:
        raise UserError(f"{weights} is a classifier: its figures need --image FILE")
    if arguments.size < 32 or arguments.size % 32:
        raise UserError(f"--size {arguments.size} is no multiple of 32 px")
    transform = create_transform(arguments.size, crop_pct=0.875, interpolation="bicubic")
    try:
        image = transform(Image.open(arguments.image).convert("RGB"))
    except OSError as error:
        raise UserError(f"cannot read image {arguments.image}: {error}") from error
    assert isinstance(image, torch.Tensor)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    picture = (image * std + mean).clamp(0, 1).permute(1, 2, 0)
    model = load_classifier(weights, img_size=arguments.size)
    for path in draw_pyramid(model, image[None], picture, arguments.cell, target):
        print(path)
    return 0
