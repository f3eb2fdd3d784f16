"""The weight-entangled supernet of AutoFormer (specification 2.2): every sub-network is a slice of one set of weights.

Shapes: B images, N tokens with the class token, e the sampled width, C classes.
"""

from typing import Literal

from torch import Tensor, nn

from focusformer.method.architecture import Architecture, SuperSizes


class Supernet(nn.Module):
    """The supernet; the architecture is an argument of `forward`, and nothing is kept between calls.

    Args:
        sizes: what is stored. drop_rate, drop_path_rate: dropout and stochastic depth in training.
        relative: how relative position is computed, with the same results.
    """

    def __init__(
        self,
        sizes: SuperSizes,
        *,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        relative: Literal["separable", "official"] = "separable",
    ) -> None:
        super().__init__()
        self.sizes = sizes

    def forward_features(self, images: Tensor, architecture: Architecture) -> Tensor:
        """(B, 3, H, W) -> (B, e), pooled."""
        raise NotImplementedError

    def forward(self, images: Tensor, architecture: Architecture) -> Tensor:
        """(B, 3, H, W) -> (B, C)."""
        raise NotImplementedError
