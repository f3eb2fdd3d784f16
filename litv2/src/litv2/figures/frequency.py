"""What frequencies a branch of HiLo lets through (the paper's figure 4), as a picture, a profile and one number.

Shapes: B batch, H x W tokens, C channels. A frequency is in cycles per token: 0 (DC) to 0.5 per axis.
"""

import torch
from torch import Tensor

EPSILON = 1e-12  # below any amplitude of interest; keeps log(0) finite


def log_magnitude(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (C, H, W): log|FFT2| with DC in the middle, mean over the batch."""
    spectrum = torch.fft.fft2(x.permute(0, 3, 1, 2)).abs()
    return torch.fft.fftshift(torch.log(spectrum + EPSILON), dim=(-2, -1)).mean(dim=0)


def log_magnitude_as_published(x: Tensor) -> Tensor:
    """The authors' snippet: its shift also rolls the channels, so picture c shows tensor channel c - C // 2 (mod C)."""
    return torch.fft.fftshift(torch.log(torch.fft.fft2(x.permute(0, 3, 1, 2)).abs() + EPSILON)).mean(dim=0)


def radius(height: int, width: int) -> Tensor:
    """(H, W), DC first: length of each frequency vector."""
    return (torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.fftfreq(width)[None] ** 2).sqrt()


def high_frequency_share(x: Tensor, above: float = 0.25) -> float:
    """Share of the energy of (B, H, W, C) at radial frequency beyond `above`, DC counted in the whole.

    Without DC the order of the two branches may flip: Lo-Fi's output is nearly constant, and its small rest follows
    each query. Lo-Fi is low in frequency by magnitude, not by the shape of that rest.
    """
    energy = torch.fft.fft2(x.permute(0, 3, 1, 2).double()).abs().square().sum(dim=(0, 1))
    return (energy[radius(*energy.shape) > above].sum() / energy.sum()).item()


def radial_profile(x: Tensor, bins: int = 8) -> tuple[Tensor, Tensor]:
    """Mean log amplitude of (B, H, W, C) in rings from DC to the corner: (centres, values), empty rings left out."""
    amplitude = torch.log(torch.fft.fft2(x.permute(0, 3, 1, 2)).abs() + EPSILON).mean(dim=(0, 1))
    rings = radius(*amplitude.shape)
    edges = torch.linspace(0, rings.max().item() + 1e-6, bins + 1)
    index = torch.bucketize(rings.flatten(), edges[1:-1], right=True)
    count = torch.bincount(index, minlength=bins)
    total = torch.bincount(index, weights=amplitude.flatten().double(), minlength=bins)
    found = count > 0
    return ((edges[:-1] + edges[1:]) / 2)[found], (total[found] / count[found]).float()
