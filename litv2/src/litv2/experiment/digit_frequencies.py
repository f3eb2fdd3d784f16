"""Part C's data and network: HiLo on handwritten digits, and the spectrum of its two branches.

Shapes: B batch, 8 x 8 pixels = 8 x 8 tokens, C channels.
"""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from litv2.experiment.two_markers import GridClassifier
from litv2.figures.frequency import EPSILON, high_frequency_share, radial_profile, radius
from litv2.method.hilo import HiLo
from litv2.models.pyramid import Block

TEST_IMAGES, BAND = 450, 0.25


class Digits(NamedTuple):
    """Images (N, 1, 8, 8) in [0, 1] and labels (N,), for training and for the test."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def split_digits(seed: int) -> Digits:
    """scikit-learn's 1797 digits, 1347 to train on and 450 to test on, classes in equal shares, split by the seed."""
    scans, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(scans.reshape(-1, 1, 8, 8)).float() / 16
    train, test = train_test_split(range(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=seed)
    targets = torch.from_numpy(labels).long()
    return Digits(images[train], targets[train], images[test], targets[test])


class _ConvStem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, GridClassifier.WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 8, 8) -> (B, 8, 8, C)."""
        return self.conv(x).permute(0, 2, 3, 1)


def digit_network(alpha: float | None) -> GridClassifier:
    """Part C's network: a 3x3 convolution, then two blocks with ConvFFN."""
    return GridClassifier(_ConvStem(), alpha, conv=True, classes=10)


@torch.no_grad()
def branch_outputs(model: GridClassifier, images: Tensor) -> dict[str, Tensor]:
    """ "block 1 Hi-Fi" and so on -> (B, 8, 8, C / 2), each branch after its projection."""
    found, x = {}, model.stem(images)
    for number, block in enumerate(model.blocks, 1):
        assert isinstance(block, Block) and isinstance(block.attn, HiLo)
        for name, y in zip(("Hi-Fi", "Lo-Fi"), block.attn.branches(block.norm1(x)), strict=True):
            if y is not None:
                found[f"block {number} {name}"] = y
        x = block(x)
    return found


def band_over_dc(x: Tensor) -> float:
    """Mean log amplitude of (B, H, W, C) beyond a quarter cycle a token, minus that of DC."""
    amplitude = torch.log(torch.fft.fft2(x.permute(0, 3, 1, 2)).abs() + EPSILON).mean(dim=(0, 1))
    return (amplitude[radius(*amplitude.shape) > BAND].mean() - amplitude[0, 0]).item()


def spectra(model: GridClassifier, images: Tensor) -> tuple[dict[str, float], dict[str, float], dict]:
    """(energy shares of the band, log amplitudes of the band over DC, radial profiles), each by branch."""
    outputs = branch_outputs(model, images)
    profiles = {name: tuple(t.tolist() for t in radial_profile(y)) for name, y in outputs.items()}
    shares = {name: high_frequency_share(y, BAND) for name, y in outputs.items()}
    return shares, {name: band_over_dc(y) for name, y in outputs.items()}, profiles
