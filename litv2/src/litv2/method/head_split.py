"""How the heads of one layer are shared between the two groups (section 3.2). Free of torch: formulas use it too."""

from paperkit.errors import UserError


def split_heads(num_heads: int, window_size: int, alpha: float) -> tuple[int, int]:
    """(Lo-Fi heads, Hi-Fi heads): ``int(num_heads * alpha)`` truncates; window 1 makes every head Lo-Fi (plain MSA).

    Raises:
        UserError: ``alpha`` outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha {alpha} is outside [0, 1]; it is the share of heads in the Lo-Fi group")
    lofi = num_heads if window_size == 1 else int(num_heads * alpha)
    return lofi, num_heads - lofi
