"""Boundary max pooling: the largest feature in a window around each proposal's start, and around its end (AFSD, 3.3).

Answers come from a sparse table: its level k holds the maximum over the 2^k cells from each cell on, so that two
entries cover any window. T log T comparisons and two look-ups a window, no loop over windows, and shapes that do not
depend on them: the same code runs on the CPU, on a GPU, under torch.compile and in an exported program.

For gradients the table holds keys in place of values: a feature's order in the upper 32 bits of a whole number and its
cell, turned round, in the lower ones. The largest key is the first of the largest features, found by the same maxima.

Shapes: B clips, C channels, T cells, K proposals, R entries of all levels of the table.
"""

import torch
from torch import Tensor


def boundary_max_pooling(x: Tensor, windows: Tensor) -> Tensor:
    """The first half of the channels is pooled over the start windows, the rest over the end windows.

    A window [a, b] holds both its ends; these are cut to integers towards zero and then to the map. If b < a, the value
    is x[a]. A gradient goes to the first maximum alone, none goes to the windows.

    Args:
        x: (B, C, T).
        windows: (B, K, 4), in cells: begin and end of the start window, begin and end of the end window.

    Returns:
        (B, C, K).
    """
    if x.shape[1] % 2:  # the table has halves of one size: a channel more for the first, which nobody sees
        half = x.shape[1] // 2
        pooled = boundary_max_pooling(torch.cat([x[:, :half], x[:, -1:], x[:, half:]], 1), windows)
        return torch.cat([pooled[:, :half], pooled[:, half + 1 :]], 1)
    # Float32 at least: bfloat16 has no 255.
    ends = windows.detach().to(torch.promote_types(windows.dtype, torch.float32)).nan_to_num()
    ends = ends.clamp(0, x.shape[2] - 1).long()  # towards zero: nothing below it is left
    begin, end = ends[..., ::2], torch.maximum(ends[..., ::2], ends[..., 1::2])
    # On the CPU a look at the windows and a loop over clips are cheap: no level too many, tables that fit its cache.
    eager = x.device.type == "cpu" and not torch.compiler.is_compiling()
    widths = _widths(int((end - begin).max()) + 1 if eager else x.shape[2])
    rows = _rows(begin, end, x.shape[2], widths, together=not eager)
    groups = list(zip(x.split(1), rows.split(1), strict=True)) if eager else [(x, rows)]
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _stacked([_window_max(some.permute(2, 0, 1), of_some, widths) for some, of_some in groups])
    with torch.no_grad():
        keys = [_window_max(_keys(some.permute(2, 0, 1)), of_some, widths) for some, of_some in groups]
        # The lower half of a key is what int32 keeps; moved in that type, which is half the bytes.
        places = _stacked([of_some.int() for of_some in keys]).neg_().add_(x.shape[2] - 1).long()
    return x.gather(2, places)


def _widths(longest: int) -> list[int]:
    """Cells that an entry of each level covers, as far as a window needs."""
    return [2**k for k in range(longest.bit_length())]


def _rows(begin: Tensor, end: Tensor, cells: int, widths: list[int], together: bool) -> Tensor:
    """Rows (B, 2, K, 2) that cover windows begin to end (B, K, 2), in a table of all clips or in one of each clip."""
    powers = 2 ** torch.arange(len(widths), device=begin.device)
    level = (powers <= (end - begin + 1)[..., None]).sum(3) - 1  # the largest 2^level that fits
    before = level * (cells + 1) - (powers[level] - 1)  # entries of the levels below it
    places = torch.stack([begin, end + 1 - powers[level]], 1)
    rows = before[:, None] + places
    if together:
        clips = begin.shape[0]
        rows = rows * clips + torch.arange(clips, device=begin.device)[:, None, None, None]
    return rows * 2 + torch.arange(2, device=begin.device)


def _window_max(x: Tensor, rows: Tensor, widths: list[int]) -> Tensor:
    """Maxima of x (T, B, C) over the windows whose rows are given: (B, C, K)."""
    cells, batch, channels = x.shape
    sizes = [cells + 1 - width for width in widths]
    # Time first: a level is one block of memory, and what a window looks up is one row of half of the channels.
    table = x.new_empty(sum(sizes), batch, channels)
    levels = table.split(sizes)
    levels[0].copy_(x)
    for width, below, level in zip(widths, levels, levels[1:], strict=False):
        torch.maximum(below[:-width], below[width:], out=level)
    found = table.view(-1, channels // 2).index_select(0, rows.flatten()).view(batch, 2, -1, channels)
    return torch.maximum(found[:, 0], found[:, 1]).transpose(1, 2)


def _stacked(groups: list[Tensor]) -> Tensor:
    """Clips (1, C, K) that lie transposed in memory -> (B, C, K). A matrix is turned four times as fast as a batch."""
    if torch.compiler.is_compiling() or groups[0].shape[0] > 1:  # all clips in one, in whatever order in memory
        return groups[0]
    clips = groups[0].new_empty(len(groups), *groups[0].shape[1:])
    for clip, group in zip(clips, groups, strict=True):
        clip.copy_(group[0])
    return clips


def _keys(x: Tensor) -> Tensor:
    """Whole numbers in the order of the features along the first axis, of equal ones the earlier the larger."""
    if x.dtype == torch.float64:  # no room for a cell beside 64 bits: the features' ranks take their place
        ordered, places = x.sort(0)
        steps = torch.cat([torch.zeros_like(places[:1]), ordered[1:] != ordered[:-1]]).cumsum(0)
        order = torch.empty_like(places).scatter_(0, places, steps)
    else:
        order = (x.float().contiguous() + 0.0).view(torch.int32)  # + 0: one zero, not two
        order ^= (order >> 31) & 0x7FFFFFFF  # negative floats fall as their bits rise
    turned = torch.arange(len(x) - 1, -1, -1, device=x.device).view(-1, 1, 1)
    return order.long().bitwise_left_shift_(32).bitwise_or_(turned)
