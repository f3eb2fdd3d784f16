"""The mechanisms that HiLo is compared with in the paper's single-layer benchmark (section 4.4, table 7), by name.

Each takes (B, N, D) tokens with H and W, or a (B, H, W, D) grid, and returns the same shape. Key names and rules are
those of the authors' benchmark repository.
"""

from litv2.method.mechanisms.cross_window import CrossWindowAttention
from litv2.method.mechanisms.gated_convolution import GatedConvolution, LargeKernelAttention
from litv2.method.mechanisms.global_attention import MSA, Linformer, RelPosAttention, SpatialReductionAttention
from litv2.method.mechanisms.shifted_window import WindowAttention
from litv2.method.mechanisms.xca import CrossCovarianceAttention

__all__ = [
    "MSA",
    "CrossCovarianceAttention",
    "CrossWindowAttention",
    "GatedConvolution",
    "LargeKernelAttention",
    "Linformer",
    "RelPosAttention",
    "SpatialReductionAttention",
    "WindowAttention",
]
