"""From an image file to what a network was trained on, and from a class index to its name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import Tensor

from paperkit.files.runs import RunFolder
from snnet.deployment.source import Source
from snnet.models.anchors import saved_classes


def image_transform(source: Source) -> Callable[[Image.Image], Tensor]:
    """Evaluation transform: timm's for three channels, the digits' scaling for one."""
    if source.input_size[0] == 1:
        return lambda image: _digit(image, source.input_size[1])
    config = resolve_model_data_config(source.network.anchors[-1]) | {"input_size": source.input_size}
    run = source.folder
    if run is not None and not (run / "started").exists():
        run = run.absolute().parent  # of a network that lies in its run
    if run is not None and (run / "started").exists():  # as the run's own evaluation saw its images
        data = RunFolder(run).read_config().get("data") or {}
        config |= {name: data[name] for name in ("crop_pct", "crop_mode", "mean", "std") if name in data}
        config["interpolation"] = data.get("eval_interpolation", config["interpolation"])
    transform: Any = create_transform(**config, is_training=False)
    return transform


def class_names(source: Source) -> list[str]:
    """Names by class index: those saved with the run, ImageNet's, or the bare numbers."""
    names, count = saved_classes(source.folder), source.network.num_classes
    if names is None and count == 1000:
        info = ImageNetInfo("imagenet-1k")
        return [info.index_to_description(i) for i in range(count)]
    return [*(names or [])[:count], *map(str, range(len(names or []), count))]


def _digit(image: Image.Image, size: int) -> Tensor:
    """Grey image, bright strokes on dark, to (1, S, S) as the digits are scaled: 0 to 1, minus 0.3."""
    pixels = np.asarray(image.convert("L").resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    return torch.from_numpy(pixels / 255 - 0.3)[None]
