"""What the tests share: the command, made data of every layout, and small configs of the segmentation engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from paperkit.testing.commands import Command
from paperkit.training.openmmlab import read_config
from paperkit.training.runner import LOADERS, changed

faseg = Command("faseg", "faseg.cli:main", preload=("faseg.experiment.run", "paperkit.training.mmseg_data"))
CONFIGS = Path(__file__).parents[1] / "configs"
HEIGHT, WIDTH = 70, 90
SMALL = {
    "FASegResNet": ["model.backbone.pretrained=None", "model.backbone.blocks=[1,1,1,1]", "model.backbone.stem=8",
                    "model.backbone.width=8", "model.backbone.outputs=16"],
    "FASegSwin": ["model.backbone.pretrained=None", "model.backbone.dim=16", "model.backbone.depths=[1,2,1,1]",
                  "model.backbone.heads=[1,2,4,8]", "model.backbone.window=4"],
    "FASegHead": ["model.decode_head.in_channels=[16,32,64,128]", "model.decode_head.conv_dim=32",
                  "model.decode_head.mask_dim=32", "model.decode_head.num_points=64",
                  "model.decode_head.pixel_decoder.layers=1", "model.decode_head.pixel_decoder.dim_feedforward=32",
                  "model.decode_head.pixel_decoder.nheads=4", "model.decode_head.decoder.num_queries=8",
                  "model.decode_head.decoder.nheads=4", "model.decode_head.decoder.dim_feedforward=32",
                  "model.decode_head.decoder.layers=5", "model.decode_head.decoder.omega=2"],
}  # fmt: skip
"""Changes of the configs' parts."""


def make_pairs(images: Path, maps: Path, names: Sequence[str], first: int = 0, classes: int = 4, seed: int = 0) -> None:
    """Noise under a bright square, and label maps that tell the square's class from the rest's.

    Args:
        first: number of the first class; 1 where 0 stands for nothing.
    """
    generator = np.random.default_rng(seed)
    for folder in (images, maps):
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        image_name, _, map_name = name.partition(":")
        pixels = generator.integers(0, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        labels = np.full((HEIGHT, WIDTH), first, np.uint8)
        kind, row, column = generator.integers(1, classes), generator.integers(0, 30), generator.integers(0, 40)
        pixels[row : row + 40, column : column + 40] += np.uint8(30 * kind + 40)
        labels[row : row + 40, column : column + 40] = first + kind
        labels[:3] = 255
        Image.fromarray(pixels).save(images / image_name)
        Image.fromarray(labels).save(maps / (map_name or f"{Path(image_name).stem}.png"))


def make_ade20k(root: Path, count: int = 4) -> Path:
    """ADE20K's layout, whose 0 stands for nothing."""
    for seed, split in enumerate(("training", "validation")):
        names = [f"{i}.jpg" for i in range(count)]
        make_pairs(root / "images" / split, root / "annotations" / split, names, first=1, seed=seed)
    return root


def make_cityscapes(root: Path, count: int = 4) -> Path:
    """Cityscapes' layout, in the numbers of its 19 classes."""
    for seed, split in enumerate(("train", "val")):
        names = [f"{i}_leftImg8bit.png:{i}_gtFine_labelTrainIds.png" for i in range(count)]
        make_pairs(root / "leftImg8bit" / split / "city", root / "gtFine" / split / "city", names, seed=seed)
    return root


def make_folder(root: Path, count: int = 4, splits: Sequence[str] = ("train", "val"), palette: bool = True) -> Path:
    """A user's own folder and CamVid's layout: pictures, label maps (palette PNG), classes.txt."""
    for seed, split in enumerate(splits):
        maps = root / f"{split}annot"
        make_pairs(root / split, maps, [f"{i}.png" for i in range(count)], seed=seed)
        for path in maps.iterdir() if palette else ():
            image = Image.open(path).convert("L")
            coloured = Image.fromarray(np.asarray(image), mode="P")
            coloured.putpalette([value for i in range(256) for value in (i * 7 % 256, i * 31 % 256, i * 67 % 256)])
            coloured.save(path)
    (root / "classes.txt").write_text("ground\nsmall\nmiddle\nlarge\n")
    return root


def small(name: str, root: Path, *more: str, batch: int = 2, overlay: str | None = None) -> Any:
    """A config of the paper at pictures of 64 pixels: four iterations, a checkpoint after every second.

    Args:
        name: path in the folder of configs. root: of the data. more: changes, as `--cfg-options` takes them.
        overlay: path of a config that goes over it.
    """
    config = read_config(str(CONFIGS / name))
    if overlay:
        config.merge_from_dict(read_config(str(CONFIGS / overlay)).to_dict())
    changed(config, [*SMALL[config.model.backbone.type], *SMALL["FASegHead"], f"data_root={root}", *more])
    for key in ("train_pipeline", "test_pipeline"):
        config[key] = None
    for loader in LOADERS:
        config[loader].num_workers = 0
        config[loader].dataset.pipeline = [_shrunk(step) for step in config[loader].dataset.pipeline]
    config.train_dataloader.batch_size = batch
    config.tta_pipeline = [_shrunk(step) for step in config.tta_pipeline]
    config.train_cfg.update(max_iters=4, val_interval=4)
    config.param_scheduler[0].end = 4
    config.default_hooks.checkpoint.interval = 2
    config.default_hooks.logger.interval = 1
    return config


def write_small(path: Path, name: str, root: Path, *more: str, **options: Any) -> Path:
    """`small` as a file."""
    small(name, root, *more, **options).dump(str(path))
    return path


def _shrunk(step: Any) -> Any:
    """A step of a pipeline at an eighth of the size and below."""
    step = dict(step)
    if step["type"] == "ShortestEdge":
        sizes = [step["sizes"]] if isinstance(step["sizes"], int) else step["sizes"]
        step.update(sizes=[max(32, 64 * size // max(sizes)) for size in sizes], longest=128)
    if "crop_size" in step:
        step["crop_size"] = (64, 64)
    if step["type"] == "Pad":
        step["size"] = (64, 64)
    if step["type"] == "TestTimeAug":
        step["transforms"] = [[_shrunk(inner) for inner in choices] for choices in step["transforms"]]
        step["transforms"][0] = [dict(type="ShortestEdge", sizes=size, longest=128) for size in (32, 64)]
    return step
