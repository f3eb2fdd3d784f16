"""Images drawn from a pipeline into a folder: `samples.npz`, `grid.png`, on request PNG files, and what was asked for.

Every image is a function of (seed, its number), whatever the batch size. Batches are kept in `parts` as they are drawn,
so a call that was killed goes on where it was; a folder is read only where `samples.json`, written last, says that it
is whole.

Shapes: N images, B batch, H, W sides in pixels.
"""

import hashlib
import io
import json
import math
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image

from paperkit.data.seeding import seed_of
from paperkit.errors import UserError
from paperkit.files.atomic import atomic_file, write_atomic
from ptq4dm.models.pipelines import ROUNDINGS, ClassConditionalLDMPipeline, Pipeline, draw, to_uint8

NPZ, GRID, RECORD, FILES, PARTS = "samples.npz", "grid.png", "samples.json", "images", "parts"
LARGEST_GRID = 64
"""Images in a grid at most."""


@dataclass(frozen=True)
class Sampling:
    """What is drawn, and how; all of it is written beside the images.

    Args:
        count: N. batch: B, at a time.
        steps, eta, guidance: of the sampler.
        seed: of noise, and of classes where they are random.
        rounding: of pixels to whole numbers, see `to_uint8`.
        classes: `balanced` draws every class equally often (or as many classes as there are images), `random` draws
            them by chance as the authors do, numbers are taken in turn.

    Raises:
        UserError: a value that cannot be.
    """

    count: int = 16
    batch: int = 16
    steps: int = 20
    eta: float = 0.0
    guidance: float = 3.0
    seed: int = 0
    rounding: str = "round"
    classes: tuple[str, ...] = field(default=("balanced",))

    def __post_init__(self) -> None:
        for name in ("count", "batch", "steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} is below 1")
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta {self.eta} is outside 0 to 1")
        if not (math.isfinite(self.guidance) and self.seed >= 0):
            raise UserError(f"guidance {self.guidance}, seed {self.seed}: a number, and one that is not negative")
        if self.rounding not in ROUNDINGS:
            raise UserError(f"rounding {self.rounding!r}; it is one of {', '.join(ROUNDINGS)}")
        if self.classes not in (("balanced",), ("random",)) and not all(c.isdigit() for c in self.classes):
            raise UserError(f"classes {' '.join(self.classes)}: they are balanced, random, or numbers")

    def labels(self, first: int, count: int, classes: int) -> list[int]:
        """Classes of the images number `first` and following; `classes` without the null class."""
        numbers = range(first, first + count)
        if self.classes == ("balanced",):
            return [i * classes // self.count if self.count < classes else i % classes for i in numbers]
        if self.classes == ("random",):
            return [seed_of(self.seed, i, 1) % classes for i in numbers]
        return [int(self.classes[i % len(self.classes)]) for i in numbers]


def sample(
    pipeline: Pipeline,
    sampling: Sampling,
    folder: str | Path,
    about: dict[str, Any],
    files: bool = False,
    on_batch: Callable[[int], None] = lambda images: None,
) -> None:
    """Draws the images into `folder`; what an interrupted call with the same settings has drawn is not drawn again.

    Args:
        about: further facts for `samples.json`: weights, bits, statistics.
        files: every image as `images/000000.png` as well.
        on_batch: told of images as they are done.

    Raises:
        UserError: a class that the pipeline does not have; `cannot write <path>`.
    """
    folder = Path(folder)
    classes = pipeline.class_embedding.null_class if isinstance(pipeline, ClassConditionalLDMPipeline) else 0
    labels = sampling.labels(0, sampling.count, classes) if classes else []
    if wrong := [label for label in labels if label > classes]:
        raise UserError(f"class {wrong[0]} is outside 0 to {classes}")
    pipeline.set_progress_bar_config(disable=True)
    told = {"sampling": asdict(sampling), **about, "fingerprint": fingerprint(pipeline)}
    record = json.dumps(told, indent=1) + "\n"
    parts = folder / PARTS
    _keep_parts_of(parts, record)
    shown: list[np.ndarray] = []

    def drawn(first: int, size: int) -> np.ndarray:
        path = parts / f"{first:08d}.npy"
        if path.is_file():
            kept: np.ndarray = np.load(path, allow_pickle=False)
            return kept
        chosen: list[int | None] = [*labels[first : first + size]] if labels else [None] * size
        images = draw(pipeline, first, chosen, sampling.seed, sampling.steps, sampling.eta, sampling.guidance)
        if not torch.isfinite(images).all():
            raise UserError(f"images {first} to {first + size - 1} hold NaN or infinite values")
        pixels = to_uint8(images, sampling.rounding).cpu().numpy()
        with atomic_file(path) as file:
            np.save(file, pixels, allow_pickle=False)
        return pixels

    def batches() -> Iterator[np.ndarray]:
        for first in range(0, sampling.count, sampling.batch):
            pixels = drawn(first, min(sampling.batch, sampling.count - first))
            shown.extend(pixels[: max(0, LARGEST_GRID - len(shown))])
            for number, image in enumerate(pixels if files else []):
                write_atomic(folder / FILES / f"{first + number:06d}.png", _png(image))
            yield pixels
            on_batch(len(pixels))

    (folder / RECORD).unlink(missing_ok=True)  # what it told is about to be replaced
    write_npz(folder / NPZ, sampling.count, batches(), labels)
    write_atomic(folder / GRID, _png(grid(shown)))
    write_atomic(folder / RECORD, record)
    shutil.rmtree(parts)


def fingerprint(pipeline: Pipeline) -> str:
    """Of all weights, by their sums, and of what the scheduler computes with: a path may hold others by now."""
    found = hashlib.sha256()
    for part, module in sorted(pipeline.components.items()):
        state = module.state_dict() if isinstance(module, torch.nn.Module) else {}
        for name, tensor in state.items():
            found.update(f"{part}.{name}={tensor.sum(dtype=torch.float64).item()!r}".encode())
    statistics = getattr(pipeline.scheduler, "statistics", None)
    if statistics is not None:
        for rows in (statistics.k, statistics.bias, statistics.residual_std):
            found.update(repr(rows.tolist()).encode())
    found.update(repr(sorted(dict(pipeline.scheduler.config).items(), key=lambda item: item[0])).encode())
    return found.hexdigest()[:16]


def _keep_parts_of(parts: Path, record: str) -> None:
    """Removes what was drawn with other settings."""
    told = parts / RECORD
    try:
        if told.is_file() and told.read_text() == record:
            return
        if parts.is_dir():
            shutil.rmtree(parts)
    except OSError as error:
        raise UserError(f"cannot write {parts}: {error.strerror or error}") from error
    write_atomic(told, record)


def write_npz(path: Path, count: int, batches: Iterator[np.ndarray], labels: list[int]) -> None:
    """Images as they come, without holding them: `arr_0` (N, H, W, 3) uint8, and `arr_1` (N,) labels if there are any.

    Raises:
        UserError: `cannot write <path>`.
    """
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            for number, pixels in enumerate(batches):
                if not number:
                    shape = (count, *pixels.shape[1:])
                    npy.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
                member.write(pixels.tobytes())
        if labels:
            with archive.open("arr_1.npy", "w") as member:
                npy.write_array(member, np.array(labels, dtype=np.int64), allow_pickle=False)


def grid(images: list[np.ndarray]) -> np.ndarray:
    """Images (H, W, C) side by side, as near to a square as they go; empty places are black."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    height, width, channels = images[0].shape
    canvas = np.zeros((rows * height, columns * width, channels), dtype=np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * height, number % columns * width
        canvas[top : top + height, left : left + width] = image
    return canvas


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()
