"""Part A: codes of patch tokens of handwritten digits, and how well their products tell similar pairs.

Shapes: I images, N = 64 tokens, C = 32, b bits, m supports, k labels of each sign in a row.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from ecoformer.experiment import settings as names
from ecoformer.experiment.settings import ExperimentConfig
from ecoformer.method.hash_fit import Fit, FitOptions, fit_hash
from ecoformer.method.kernel_hash import KernelHash, normalise
from ecoformer.method.similarity import pair_labels
from paperkit.data.seeding import seed_of
from paperkit.files.weights import read_weights, save_weights

WIDTH, BITS, SUPPORTS, TOPK = 32, 16, 25, 10
PATCHES = 4  # stream of random numbers
FITS = {
    names.KSH_LARGE: FitOptions("released", lr=1.0, topk=TOPK),
    names.KSH_SMALL: FitOptions("released", lr=0.2, topk=TOPK),
    names.KSH_ADAM: FitOptions("adam", topk=TOPK),
    names.KSH_OFFICIAL: FitOptions("released", topk=TOPK),
    names.KSH_RANDOM: FitOptions("random", topk=TOPK),
}
SWEEP = ((4, 25), (8, 25), (16, 25), (32, 25), (16, 12), (16, 50))
"""(bits, supports) that the sweep's figure shows."""


def generator(seed: int, *more: int) -> torch.Generator:
    """Of part A's random numbers."""
    return torch.Generator().manual_seed(seed_of(seed, PATCHES, *more))


def patch_tokens(seed: int, config: ExperimentConfig) -> tuple[Tensor, Tensor]:
    """Normalised tokens to fit on and to measure on, (I, 1, N, C) each, of different images.

    A token is a zero-padded 3 x 3 patch without its mean, and its place in [-1, 1]^2, under a random linear map.
    """
    scans = torch.from_numpy(load_digits().images).float()[:, None] / 16
    chosen = torch.randperm(len(scans), generator=generator(seed))[: config.fit_images + config.test_images]
    tokens = tokens_of(scans[chosen], seed)
    return tokens[: config.fit_images], tokens[config.fit_images :]


def tokens_of(scans: Tensor, seed: int) -> Tensor:
    """(I, 1, 8, 8) -> (I, 1, N, C)."""
    patches = F.unfold(scans, 3, padding=1).mT  # (I, N, 9)
    side = torch.linspace(-1, 1, scans.shape[-1])
    place = torch.cartesian_prod(side, side).expand(len(patches), -1, -1)
    features = torch.cat([patches - patches.mean(-1, keepdim=True), place], -1)
    return normalise(features @ torch.randn(features.shape[-1], WIDTH, generator=generator(seed, 1)))[:, None]


def fit_codes(seed: int, config: ExperimentConfig, folder: Path) -> None:
    """Every hash of a seed, kept in `folder`; those that are there stay. A start and supports are shared by all."""
    fitted, _ = patch_tokens(seed, config)
    jobs = {name: (options, BITS, SUPPORTS) for name, options in FITS.items()}
    jobs |= {f"{bits}-{m}-{codes}": (FITS[codes], bits, m) for bits, m, codes in swept(seed, config)}
    for name, (options, bits, supports) in jobs.items():
        if not file_of(folder, name).exists():
            save_weights(file_of(folder, name), _kept(_fit(fitted, seed, config, options, bits, supports)))


def swept(seed: int, config: ExperimentConfig) -> list[tuple[int, int, str]]:
    """(bits, supports, codes) of the sweep, which the first seed alone makes."""
    if not config.sweep or seed != config.first_seed:
        return []
    return [(bits, m, codes) for bits, m in SWEEP for codes in (names.KSH_LARGE, names.KSH_RANDOM)]


def _fit(u: Tensor, seed: int, config: ExperimentConfig, options: FitOptions, bits: int, supports: int) -> Fit:
    start = torch.randn(1, bits, supports, generator=generator(seed, 2))
    perm = torch.randperm(u.shape[2], generator=generator(seed, 3))
    return fit_hash(u, start, replace(options, iterations=config.fit_iterations), perm=perm)


def _kept(fit: Fit) -> dict[str, Tensor]:
    """What the measurement needs of a fit."""
    kept = {name: getattr(fit, name) for name in ("A", "mvec", "anchor", "loss_before", "loss_after")}
    return {name: value.contiguous() for name, value in {**kept, "accepted": fit.accepted.float()}.items()}


@torch.no_grad()
def measure_codes(seed: int, config: ExperimentConfig, folder: Path) -> dict[str, Any]:
    """Part A's share of a `SeedResult`, from the hashes in `folder`."""
    _, u = patch_tokens(seed, config)
    labels = pair_labels(u, TOPK).dense()
    errors, aucs, fits, distances = {}, {}, {}, {}
    for name in FITS:
        codes = hash_of(folder, name)(u)
        errors[name], aucs[name] = label_error(codes, labels), auc(codes, labels)
        kept = read_weights(file_of(folder, name))
        fits[name] = {key: kept[key].tolist() for key in ("loss_before", "loss_after", "accepted")}
        if name in (names.KSH_RANDOM, names.KSH_LARGE):
            distances["before" if name == names.KSH_RANDOM else "after"] = distance_shares(codes, labels)
    lsh = torch.randn(WIDTH, BITS, generator=generator(seed, 5))
    for name, codes in ((names.LSH, torch.sign(u @ lsh)), (names.COORDINATES, torch.sign(u[..., :BITS]))):
        errors[name], aucs[name] = label_error(codes, labels), auc(codes, labels)
    sweep: list[dict[str, Any]] = []
    for bits, m, name in swept(seed, config):
        codes = hash_of(folder, f"{bits}-{m}-{name}")(u)
        found = {"error": label_error(codes, labels), "auc": auc(codes, labels)}
        sweep.append({"bits": bits, "supports": m, "codes": name, **found})
    order = names.CODES
    return {
        "errors": {name: errors[name] for name in order},
        "aucs": {name: aucs[name] for name in order},
        "distances": dict(sorted(distances.items(), reverse=True)),
        "fits": fits,
        "sweep": sweep,
    }


def hash_of(folder: Path, name: str) -> KernelHash:
    """A fitted hash of a seed; `name` as in FITS, or with "bits-supports-" in front."""
    kept = read_weights(file_of(folder, name))
    heads, bits, supports = kept["A"].shape
    layer = KernelHash(heads, WIDTH, bits, supports)
    layer.set_fit(kept["A"], kept["mvec"], kept["anchor"])
    return layer


def file_of(folder: Path, name: str) -> Path:
    """Where a hash is kept."""
    return folder / f"{name.replace(' ', '_')}.safetensors"


def label_error(codes: Tensor, labels: Tensor) -> float:
    """mean (h_i . h_j / b - S_ij)^2 over all pairs of a sample, and samples."""
    return (codes @ codes.mT / codes.shape[-1] - labels).square().double().mean().item()


def auc(codes: Tensor, labels: Tensor) -> float:
    """Percent of (similar, dissimilar) pairs whose products h_i . h_j are in that order; ties count half."""
    products = (codes @ codes.mT + codes.shape[-1]).long()
    most = 2 * codes.shape[-1] + 1
    similar, dissimilar = (torch.bincount(products[labels == sign], minlength=most).double() for sign in (1, -1))
    below = dissimilar.cumsum(0) - dissimilar / 2
    return 100 * (similar @ below / (similar.sum() * dissimilar.sum())).item()


def distance_shares(codes: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """For similar, dissimilar and unlabelled pairs the share at each Hamming distance (b - h_i . h_j) / 2."""
    distances = ((codes.shape[-1] - codes @ codes.mT) / 2).long()
    found = {}
    for name, sign in (("similar", 1), ("dissimilar", -1), ("unlabelled", 0)):
        counts = torch.bincount(distances[labels == sign], minlength=codes.shape[-1] + 1).double()
        found[name] = (counts / counts.sum().clamp_min(1)).tolist()
    return found
