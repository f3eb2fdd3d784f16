"""The digits as images to generate, and how near samples are to them.

Shapes: N images, C channels (1, or 3 of tinted digits).
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from paperkit.data.seeding import seed_of
from ptq4dm.experiment.settings import REFERENCE, TRAIN

RIDGE = 1e-6  # on the diagonals of covariances: border pixels never change


def split_digits(tinted: bool = False) -> tuple[Tensor, Tensor]:
    """Images (N, C, 8, 8) in [-1, 1]: 1200 to train on and 597 as the reference, the same split for every seed."""
    scans, targets = load_digits(return_X_y=True)
    images = torch.from_numpy(scans.reshape(-1, 1, 8, 8)).to(torch.get_default_dtype()) / 16
    if tinted:
        generator = torch.Generator().manual_seed(seed_of(0, len(images)))
        images = images * (0.3 + 0.7 * torch.rand(len(images), 3, 1, 1, generator=generator))
    train, reference = train_test_split(
        range(len(images)), train_size=TRAIN, test_size=REFERENCE, stratify=targets, random_state=0
    )
    images = 2 * images - 1
    return images[train], images[reference]


def pixel_frechet(samples: Tensor, reference: Tensor) -> float:
    """Frechet distance of two sets of images as Gaussians over their pixels, each (N, ...); no FID: no network in it.

    `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`, a ridge on both covariances. Few samples make it larger: compare only
    at equal counts.
    """
    (mean, covariance), (other_mean, other) = (_moments(images) for images in (samples, reference))
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    return float((mean - other_mean).square().sum() + covariance.trace() + other.trace() - 2 * cross)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    rows = images.flatten(1).double()
    return rows.mean(0), rows.T.cov() + RIDGE * torch.eye(rows.shape[1], dtype=rows.dtype)
