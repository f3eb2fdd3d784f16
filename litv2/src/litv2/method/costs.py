"""How the heads are shared between the two groups, and multiply-adds by formula (section 3.2); free of torch.

The formulas count as the paper and the authors' `flops()` do, with their quirks.

Shapes: H x W tokens, N = H * W, D channels of a layer, h_dim and l_dim channels of the two groups, s window.
A bias and a softmax count nothing. `paperkit.results.flops.count` counts what really runs; this file reproduces tables.
"""

from collections.abc import Sequence

from paperkit.errors import UserError


def split_heads(num_heads: int, window_size: int, alpha: float) -> tuple[int, int]:
    """(Lo-Fi heads, Hi-Fi heads): `int(num_heads * alpha)` truncates; window 1 makes every head Lo-Fi (plain MSA).

    Raises:
        UserError: `alpha` outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha {alpha} is outside [0, 1]; it is the share of heads in the Lo-Fi group")
    lofi = num_heads if window_size == 1 else int(num_heads * alpha)
    return lofi, num_heads - lofi


def hilo_macs(H: int, W: int, dim: int, head_dim: int, l_heads: int, h_heads: int, window: int) -> int:
    """One HiLo layer; H and W are rounded up to multiples of the window, as the layer pads them."""
    n = -(-H // window) * window * (-(-W // window) * window)
    l_dim, h_dim = l_heads * head_dim, h_heads * head_dim
    keys = window * window
    hifi = 3 * n * dim * h_dim + 2 * keys * n * h_dim + n * h_dim * h_dim
    lofi = n * dim * l_dim + 2 * (n // keys) * dim * l_dim + 2 * n * (n // keys) * l_dim + n * l_dim * l_dim
    return hifi + lofi


def msa_macs(n: int, dim: int) -> int:
    """Multi-head self-attention: 4 N D^2 + 2 N^2 D."""
    return 4 * n * dim * dim + 2 * n * n * dim


def block_macs(height: int, width: int, dim: int, mlp_ratio: float, conv: bool, attention: int) -> int:
    """One block: norm2 and FFN, and with `attention` (the layer's multiply-adds, 0 for none) norm1 too."""
    n, hidden = height * width, int(dim * mlp_ratio)
    ffn = n * dim + 2 * n * dim * hidden + (10 * hidden * n if conv else 0)
    return ffn + (n * dim + attention if attention else 0)


def merging_macs(height: int, width: int, dim: int) -> int:
    """One deformable merging. The authors count 12 offset channels where there are 8."""
    n = (height // 2) * (width // 2)
    return n * (48 * dim + 12 + 8 * dim * dim + 2 * dim + 2 * dim)


def official_macs(
    img_size: int,
    embed_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    alpha: float = 0.9,
    local_ws: Sequence[int] = (0, 0, 2, 1),
    has_msa: Sequence[int] = (0, 0, 1, 1),
    num_classes: int = 1000,
    mlp_ratio: float = 4.0,
    patch_size: int = 4,
    in_chans: int = 3,
    litv1: bool = False,
    lofi_heads: Sequence[int] | None = None,
) -> int:
    """The authors' `flops()` of a whole classifier on a square image.

    Args:
        litv1: plain MLPs and attention over the whole grid, as LITv1's counter has it.
        lofi_heads: Lo-Fi heads of each stage, instead of `alpha`.
    """
    grid = img_size // patch_size
    total = embed_dim * (in_chans * patch_size**2 + 1) * grid * grid
    stages = len(depths)
    for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        side, dim = grid // 2**i, embed_dim * 2**i
        attention = 0
        if has_msa[i] and litv1:
            attention = msa_macs(side * side, dim)
        elif has_msa[i]:
            lofi = split_heads(heads, local_ws[i], alpha)[0] if lofi_heads is None else lofi_heads[i]
            attention = hilo_macs(side, side, dim, dim // heads, lofi, heads - lofi, local_ws[i])
        total += depth * block_macs(side, side, dim, mlp_ratio, not litv1, attention)
        if i < stages - 1:
            total += merging_macs(side, side, dim)
    width = embed_dim * 2 ** (stages - 1)
    # the final norm is divided by 2 ** number of stages instead of its square
    return total + width * grid * grid // 2**stages + width * num_classes
