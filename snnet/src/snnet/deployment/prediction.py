"""From an image file to what a network was trained on, and from a class index to its name."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image, UnidentifiedImageError
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import Tensor

from paperkit.errors import UserError
from snnet.deployment.source import Source

CLASSES = "classes.json"


def read_image(path: str) -> Image.Image:
    """Open an image file; UserError if it is missing or no image."""
    try:
        image = Image.open(path)
        image.load()
        return image
    except FileNotFoundError:
        raise UserError(f"no image at {path}") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"{path} is no readable image: {error}") from None


def image_transform(source: Source) -> Callable[[Image.Image], Tensor]:
    """Evaluation transform: timm's for three channels, the digits' scaling for one."""
    if source.input_size[0] == 1:
        return lambda image: _digit(image, source.input_size[1])
    config = resolve_model_data_config(source.network.anchors[-1]) | {"input_size": source.input_size}
    run = source.folder / "config.yaml" if source.folder else None
    if run is not None and run.exists():  # as the run's own evaluation saw its images
        data = yaml.safe_load(run.read_text()).get("data", {})
        config |= {name: data[name] for name in ("crop_pct", "crop_mode", "mean", "std") if name in data}
        config["interpolation"] = data.get("eval_interpolation", config["interpolation"])
    transform: Any = create_transform(**config, is_training=False)
    return lambda image: transform(image.convert("RGB"))


def class_names(source: Source) -> list[str]:
    """Names by class index: those saved with the run, ImageNet's, or the bare numbers."""
    path = None if source.folder is None else source.folder / CLASSES
    if path is not None and path.exists():
        return json.loads(path.read_text())
    count = source.network.num_classes
    if count == 1000:
        info = ImageNetInfo("imagenet-1k")
        return [info.index_to_description(i) for i in range(count)]
    return [str(i) for i in range(count)]


def _digit(image: Image.Image, size: int) -> Tensor:
    """Grey image, bright strokes on dark, to (1, S, S) as the digits are scaled: 0 to 1, minus 0.3."""
    pixels = np.asarray(image.convert("L").resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    return torch.from_numpy(pixels / 255 - 0.3)[None]
