"""FID, sFID, Inception score, precision and recall of a set of images, under conditions that are told with them.

The formulas and the network are torch-fidelity's (the TensorFlow weights, ported); sFID takes the Frechet formula over
the first 7 channels of the network's 17 x 17 map, as OpenAI's evaluator does. Any other extractor of features serves.
A figure depends on how pixels were rounded, on the count of images and on the reference: these are its conditions, and
figures under different ones are not compared.

Shapes: N images, B batch, H, W sides, D features, K classes.
"""

import contextlib
import hashlib
import importlib
import json
import math
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from paperkit.data.pictures import read_picture
from paperkit.errors import UserError, one_line
from paperkit.files.arrays import read_npz
from paperkit.files.atomic import atomic_file, write_atomic
from paperkit.files.bounded import read_json, regular_file
from paperkit.files.weights import read_weights
from ptq4dm.deployment.sampling import NPZ, RECORD

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SPLIT = 5000
"""Images behind one value of the Inception score."""
NEIGHBOURS = 3
"""Of precision and recall."""
SPATIAL = 7
"""Channels of the 17 x 17 map behind sFID: 2023 numbers an image."""


class Features(NamedTuple):
    """Of a batch: `pool` (B, D) for FID, precision and recall; `spatial` (B, D') for sFID; `logits` (B, K) for IS."""

    pool: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


Extractor = Callable[[Tensor], Features]
"""Images (B, 3, H, W) uint8 to their features."""


def pixels(images: Tensor) -> Features:
    """The pixels themselves: for small images, and never to be called FID."""
    return Features(images.flatten(1).float() / 127.5 - 1)


def inception(weights: str | Path | None, device: torch.device) -> Extractor:
    """torch-fidelity's Inception network.

    Args:
        weights: its file (`weights-inception-2015-12-05-6726825d.pth`); None downloads it.

    Raises:
        UserError: the weights are not to be had, or the file is another.
    """
    if weights is not None:
        read_weights(weights, advice=None)  # refuses a pickle that runs code, before the library reads it
    try:
        network = FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], None if weights is None else str(weights)
        )
    except OSError as error:
        raise UserError(
            f"the Inception weights cannot be downloaded ({error}): name their file with --weights"
        ) from error
    except RuntimeError as error:
        raise UserError(f"{weights} does not fit the Inception network: {one_line(str(error))[:200]}") from error
    network.to(device)
    seen: list[Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, out: seen.append(out))  # mixed_6/conv

    @torch.no_grad()
    def extract(images: Tensor) -> Features:
        seen.clear()
        pool, logits = network(images.to(device))
        return Features(pool.cpu(), seen[0][:, :SPATIAL].flatten(1).cpu(), logits.cpu())

    return extract


def extractor_named(name: str, weights: str | Path | None, device: torch.device) -> Extractor:
    """`inception`, `pixels`, or the user's own as `module:function`.

    Raises:
        UserError: there is none of this name.
    """
    if name == "pixels":
        return pixels
    if name == "inception":
        return inception(weights, device)
    module, _, function = name.partition(":")
    try:
        found: Extractor = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"no extractor {name!r}: it is inception, pixels, or module:function ({error})") from error
    return found


@dataclass(frozen=True)
class Images:
    """A set of images on disk.

    Args:
        path: as it was named. count: N.
        rounding: how the pixels became whole numbers, where that is known.
        npz: the file that holds them; None where `files` are pictures.
    """

    path: Path
    count: int
    rounding: str
    npz: Path | None = None
    files: tuple[Path, ...] = ()

    @classmethod
    def at(cls, path: str | Path) -> "Images":
        """A folder of `ptq4dm sample`, a folder of pictures, or an npz file with `arr_0` (N, H, W, 3) uint8.

        Raises:
            UserError: none of these.
        """
        path = Path(path)
        rounding = "unknown"
        if path.is_dir() and (path / NPZ).is_file():
            if not (path / RECORD).is_file():
                raise UserError(f"{path} is not whole: it has no {RECORD}, which is written last; sample again")
            try:
                rounding = str(read_json(path / RECORD, "record")["sampling"]["rounding"])
            except (KeyError, TypeError) as error:
                raise UserError(f"{path / RECORD} is no record of sampling: it lacks {error}") from error
        npz = path / NPZ if path.is_dir() and (path / NPZ).is_file() else path if path.suffix == ".npz" else None
        if npz is not None:
            with _open_images(npz) as (_, shape):
                return cls(path, shape[0], rounding, npz)
        if not path.is_dir():
            raise UserError(f"no images at {path}: it is neither a folder nor an npz file")
        files = tuple(sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES))
        if not files:
            raise UserError(f"{path} holds no pictures ({', '.join(PICTURES)})")
        return cls(path, len(files), rounding, None, files)

    def batches(self, size: int) -> Iterator[Tensor]:
        """(B, 3, H, W) uint8, at most `size` at a time.

        Raises:
            UserError: a file that is cut off, pictures that cannot be read or are of several sizes.
        """
        if self.npz is not None:
            with _open_images(self.npz) as (member, shape):
                for first in range(0, shape[0], size):
                    count = min(size, shape[0] - first)
                    wanted = count * math.prod(shape[1:])
                    try:
                        raw = member.read(wanted)
                    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
                        raise UserError(
                            f"{self.npz} is damaged behind image {first}: {one_line(str(error))}"
                        ) from error
                    if len(raw) != wanted:
                        raise UserError(f"{self.npz} is cut off after image {first}")
                    yield _channels(np.frombuffer(bytearray(raw), np.uint8).reshape(count, *shape[1:]))
            return
        first_size: tuple[int, int] | None = None
        for first in range(0, self.count, size):
            batch = []
            for file in self.files[first : first + size]:
                picture = read_picture(file)
                first_size = first_size or picture.size
                if picture.size != first_size:
                    raise UserError(
                        f"{file} has {picture.size} pixels and others {first_size}: all must be of one size"
                    )
                batch.append(np.asarray(picture))
            yield _channels(np.stack(batch))


def _channels(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images.repeat(3, -1) if images.shape[-1] == 1 else images).permute(0, 3, 1, 2)


@contextlib.contextmanager
def _open_images(path: Path) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """The member `arr_0` of an npz file, open behind its header, and its shape (N, H, W, 1 or 3)."""
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(regular_file(path, "npz file")))
            member = stack.enter_context(archive.open("arr_0.npy"))
            first = npy.read_magic(member) == (1, 0)
            read = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
            shape, fortran, dtype = read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, RuntimeError, OSError) as error:
            raise UserError(f"{path} holds no images (arr_0): {one_line(str(error))[:200]}") from error
        if fortran or dtype != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3) or min(shape) < 1:
            raise UserError(f"{path}: arr_0 is {dtype} of shape {shape}; images are uint8 (N, H, W, 3)")
        yield member, shape


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and unbiased covariance (D, D) in float64."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Of rows (N, D).

        Raises:
            UserError: fewer than two rows.
        """
        if len(features) < 2:
            raise UserError(f"{len(features)} image has no covariance: 2 at least")
        found = fid_features_to_statistics(features.double())
        return cls(found["mu"], np.atleast_2d(found["sigma"]))


@dataclass(frozen=True)
class Reference:
    """What images are judged against.

    Args:
        name: of the file or folder. identity: of its content.
        count: of its images; 0 where only statistics are known.
        pool, spatial: for FID and sFID. features: (N, D) for precision and recall, where images are there.
        extractor: whose features these statistics are; empty where the file does not say.
        has_images: the file of statistics holds images beside them.
    """

    name: str
    identity: str
    count: int
    pool: Moments
    spatial: Moments | None = None
    features: Tensor | None = None
    extractor: str = ""
    has_images: bool = False


def extract(images: Images, extractor: Extractor, batch: int, advance: Callable[[int], None]) -> Features:
    """Features of all images."""
    parts = []
    for part in images.batches(batch):
        parts.append(extractor(part))
        advance(len(part))

    def joined(values: list[Tensor | None]) -> Tensor | None:
        there = [value for value in values if value is not None]
        return torch.cat(there) if there else None

    pool = joined([part.pool for part in parts])
    assert pool is not None
    return Features(pool, joined([part.spatial for part in parts]), joined([part.logits for part in parts]))


def frechet(a: Moments, b: Moments) -> float:
    """`|mean difference|^2 + trace(A + B - 2 (A B)^(1/2))`, torch-fidelity's.

    Raises:
        UserError: features of another width.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(f"features of {len(a.mean)} numbers, and the reference has {len(b.mean)}: another extractor")
    sides = [{"mu": side.mean, "sigma": side.covariance} for side in (a, b)]
    return float(fid_statistics_to_metric(*sides, False)["frechet_inception_distance"])


def inception_score(logits: Tensor, split: int = SPLIT) -> float:
    """Mean over splits of `exp(mean KL(p(class | image) || p(class)))`, in the order of the images."""
    values = [isc_features_to_metric(part, 1, False)["inception_score_mean"] for part in logits.split(split)]
    return float(np.mean(values))


def precision_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Shares of images within the other side's balls of 3 nearest neighbours.

    Raises:
        UserError: a side of fewer than 4 images.
    """
    if min(len(generated), len(real)) <= NEIGHBOURS:
        raise UserError(f"precision and recall need more than {NEIGHBOURS} images on both sides")
    options = dict(prc_neighborhood=NEIGHBOURS, prc_batch_size=10_000, save_cpu_ram=True, verbose=False)
    found = prc_features_to_metric(generated, real, **options)
    return found["precision"], found["recall"]


def reference_of_images(images: Images, features: Features, extractor: str) -> Reference:
    """Of images whose features are known."""
    spatial = None if features.spatial is None else Moments.of(features.spatial)
    identity = _digest(images.npz) if images.npz is not None else _digest(*images.files)
    return Reference(
        str(images.path), identity, images.count, Moments.of(features.pool), spatial, features.pool, extractor
    )


def read_statistics(path: str | Path, extractor: str) -> Reference | None:
    """Statistics in an npz file, `mu` and `sigma` (`mu_s` and `sigma_s` for sFID); None of whatever else there is.

    OpenAI's have images as well, from which precision and recall come; then `count` is theirs.

    Raises:
        UserError: unreadable, statistics that fit nothing, or of another extractor.
    """
    path = Path(path)
    if path.suffix != ".npz":
        return None
    try:
        with zipfile.ZipFile(regular_file(path, "npz file")) as archive:
            if "mu.npy" not in archive.namelist():
                return None
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is damaged or no npz file: {error}") from error
    arrays = read_npz(path)
    try:
        pool = Moments(arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64))
        has = "mu_s" in arrays
        spatial = Moments(arrays["mu_s"].astype(np.float64), arrays["sigma_s"].astype(np.float64)) if has else None
        count = int(arrays["count"]) if "count" in arrays else len(arrays.get("arr_0", ()))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds no statistics of images: {error}") from error
    for moments in filter(None, (pool, spatial)):
        if moments.mean.ndim != 1 or moments.covariance.shape != moments.mean.shape * 2:
            raise UserError(f"{path}: a mean of {moments.mean.shape} and a covariance of {moments.covariance.shape}")
        if not (np.isfinite(moments.mean).all() and np.isfinite(moments.covariance).all()):
            raise UserError(f"{path}: its statistics hold NaN or infinite values")
    told = str(arrays["extractor"]) if "extractor" in arrays else ""
    if told not in ("", extractor):
        raise UserError(f"{path} holds statistics of the extractor {told}, not of {extractor}")
    return Reference(str(path), _digest(path), count, pool, spatial, None, told, "arr_0" in arrays)


def write_statistics(path: str | Path, reference: Reference) -> None:
    """Writes the statistics of a reference, for later runs.

    Raises:
        UserError: `cannot write <path>`.
    """
    arrays = {"mu": reference.pool.mean, "sigma": reference.pool.covariance}
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mean, "sigma_s": reference.spatial.covariance}
    arrays |= {"count": np.array(reference.count), "extractor": np.array(reference.extractor)}
    with atomic_file(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def _digest(*paths: Path) -> str:
    found = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()[:16]


def score(features: Features, reference: Reference, extractor: str) -> dict[str, float]:
    """All figures that the features and the reference allow; only Inception's Frechet distance is called FID."""
    prefix = "" if extractor == "inception" else f"{extractor} "
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on complex numbers with no imaginary part
        name = "FID" if not prefix else f"{prefix}Frechet distance"
        found = {name: frechet(Moments.of(features.pool), reference.pool)}
        if features.spatial is not None and reference.spatial is not None:
            found[f"{prefix}sFID"] = frechet(Moments.of(features.spatial), reference.spatial)
        if features.logits is not None:
            found["IS" if not prefix else f"{prefix}score"] = inception_score(features.logits)
        if reference.features is not None and min(len(features.pool), len(reference.features)) > NEIGHBOURS:
            precision, recall = precision_recall(features.pool, reference.features)
            found |= {f"{prefix}precision": precision, f"{prefix}recall": recall}
    return found


def conditions(images: Images, reference: Reference, extractor: str) -> dict[str, Any]:
    """Under which figures are figures: what must be equal for two of them to be compared."""
    return {
        "images": images.count,
        "rounding": images.rounding,
        "extractor": extractor,
        "reference": f"{Path(reference.name).name} ({reference.identity})",
        "reference images": reference.count or "unknown",
    }


def write_scores(path: str | Path, scores: dict[str, float], under: dict[str, Any], source: str) -> None:
    """Writes figures and their conditions as JSON.

    Raises:
        UserError: `cannot write <path>`.
    """
    content = {"images": source, "scores": scores, "conditions": under}
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def read_scores(path: str | Path, under: dict[str, Any]) -> dict[str, float]:
    """Figures of another run, if they were taken under the same conditions.

    Raises:
        UserError: unreadable, or under others: the first that differs, and both values.
    """
    content = read_json(path, "scores")
    try:
        theirs, found = content["conditions"], {name: float(value) for name, value in content["scores"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} holds no scores with their conditions: {error!r}") from error
    for name, value in under.items():
        if theirs.get(name) != value:
            raise UserError(f"not to be compared: {name} is {value} here and {theirs.get(name)} in {path}")
    return found
