"""The resize of the authors' data pipeline: the shorter side to a size, by Pillow on 8-bit pictures.

mmsegmentation's `ResizeShortestEdge` goes through OpenCV, whose bilinear filter does not widen when it shrinks a
picture, and rounds twice. Importing this module registers `ShortestEdge` with mmsegmentation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmseg.registry import TRANSFORMS
from PIL import Image


@TRANSFORMS.register_module()
class ShortestEdge:
    """Brings the shorter side to one of `sizes` and keeps the shape; label maps by nearest neighbours.

    Args:
        sizes: of which each picture gets a random one.
        longest: a picture whose longer side would exceed it is made smaller.
    """

    def __init__(self, sizes: int | Sequence[int], longest: int) -> None:
        self.sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
        self.longest = longest

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        size = self.sizes[0] if len(self.sizes) == 1 else int(np.random.choice(self.sizes))
        height, width = results["img"].shape[:2]
        new_height, new_width = resized_shape(height, width, size, self.longest)
        image = np.asarray(Image.fromarray(results["img"]).resize((new_width, new_height), Image.Resampling.BILINEAR))
        resized = {
            key: np.asarray(Image.fromarray(results[key]).resize((new_width, new_height), Image.Resampling.NEAREST))
            for key in results.get("seg_fields", [])
        }
        factors = (new_width / width, new_height / height)
        shapes = dict(img_shape=(new_height, new_width), scale_factor=factors, keep_ratio=True)
        return {**results, **resized, "img": image, **shapes}


def resized_shape(height: int, width: int, size: int, longest: int) -> tuple[int, int]:
    """(height, width) with the shorter side at `size` and the longer at most `longest`, rounded half up, at least 1."""
    scale = size / min(height, width)
    scaled = (float(size), scale * width) if height < width else (scale * height, float(size))
    if max(scaled) > longest:
        shrink = longest / max(scaled)
        scaled = (scaled[0] * shrink, scaled[1] * shrink)
    return max(1, int(scaled[0] + 0.5)), max(1, int(scaled[1] + 0.5))
