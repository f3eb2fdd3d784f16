"""Figures of a trained network on images: spectra of the two branches, attention of one query, sampling places.

Shapes: B images, H x W tokens, C channels of a branch.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from litv2.figures.attention_maps import query_weights
from litv2.figures.frequency import log_magnitude
from litv2.figures.offset_trace import pixel_positions, trace_offsets
from litv2.method.hilo import HiLo
from litv2.models.pyramid import Pyramid
from paperkit.errors import UserError
from paperkit.results.report import COLORS, figure, save_figure, style

CHANNELS = 8  # pictures a branch, as in the paper's figure


class HiLoInput(NamedTuple):
    """One HiLo layer, what it reads (B, H, W, D), and the first image as a picture (rows, columns[, 3]) in [0, 1]."""

    name: str
    layer: HiLo
    x: Tensor
    picture: Tensor


def both_maps(seen: HiLoInput) -> dict[str, Callable[[], object]]:
    """The two figures of one layer, to be drawn."""
    return {"frequency_maps": partial(frequency_maps, seen), "attention_maps": partial(attention_maps, seen)}


@torch.no_grad()
def draw_pyramid(
    model: Pyramid, image: Tensor, picture: Tensor, cell: tuple[int, int] | None, folder: Path
) -> list[Path]:
    """Spectra and attention maps of the last block of stage 3, and where a cell of the last map samples the image.

    Args:
        image: (1, 3, S, S), normalised.
        picture: (S, S, 3) in [0, 1].
        cell: (row, column) of the last map; None for its middle.

    Raises:
        UserError: a network without HiLo in stage 3, an image that is not square, a cell outside the last map.
    """
    if image.shape[2] != image.shape[3]:
        raise UserError(f"image of {image.shape[2]} x {image.shape[3]} px; these figures take a square one")
    offsets: list[Tensor] = []
    seen = None
    x = model.eval().patch_embed(image)
    for number, stage in enumerate(model.each_stage(), 1):
        for block in stage.each_block():
            layer = getattr(block, "attn", None)
            if number == 3 and isinstance(layer, HiLo):
                seen = HiLoInput("last block of stage 3", layer, block.norm1(x), picture)
            x = block(x)
        if stage.downsample is not None:
            offsets.insert(0, stage.downsample.dconv.offsets(x)[0].permute(2, 0, 1))
            x = stage.downsample(x)
    if seen is None:
        raise UserError("no HiLo layer in stage 3 of this network; these figures are of LITv2")
    place = cell or (x.shape[1] // 2, x.shape[2] // 2)
    places = partial(sampling_places, offsets, place, picture)
    return save({**both_maps(seen), "sampling_places": places}, folder)


def save(drawn: dict[str, Callable[[], object]], folder: Path) -> list[Path]:
    """Draws each and writes it as `folder/<name>.png`."""
    paths = []
    for name, make in drawn.items():
        with style():
            save_figure(make(), folder / f"{name}.png")  # type: ignore[arg-type]
        paths.append(folder / f"{name}.png")
    return paths


def frequency_maps(seen: HiLoInput) -> object:
    """The paper's figure of frequency magnitudes: log |FFT| of the first channels of each branch, DC in the middle."""
    with torch.no_grad():
        branches = zip(("Hi-Fi", "Lo-Fi"), seen.layer.branches(seen.x), strict=True)
    maps = {name: log_magnitude(y)[:CHANNELS] for name, y in branches if y is not None}
    low, high = min(m.min().item() for m in maps.values()), max(m.max().item() for m in maps.values())
    drawn, axes = figure(len(maps), CHANNELS, width=11, height=1.5 + 1.6 * len(maps), squeeze=False)
    for row, (name, channels) in zip(axes, maps.items(), strict=True):
        for i, place in enumerate(row):
            place.set_axis_off()
            if i < len(channels):
                picture = place.imshow(channels[i], vmin=low, vmax=high, cmap="viridis")
                place.set_title(f"{name} channel {i}", fontsize=8)
    drawn.colorbar(picture, ax=axes.ravel().tolist(), label="mean log amplitude", shrink=0.8)
    drawn.suptitle(f"Frequencies of each branch, DC in the middle ({seen.name})")
    return drawn


def attention_maps(seen: HiLoInput) -> object:
    """Weights of the middle token: over the whole map in each Lo-Fi head, over its own window in each Hi-Fi head."""
    rows, columns = seen.x.shape[1:3]
    query = rows // 2, columns // 2
    found = query_weights(seen.layer, seen.x[:1], query)
    heads = [("Lo-Fi", found.lofi, 4), ("Hi-Fi", found.hifi, 3)]  # how many of each fit beside each other
    maps = [(name, i, m) for name, group, count in heads if group is not None for i, m in enumerate(group[:count])]
    drawn, axes = figure(1, 1 + len(maps), width=2 * (1 + len(maps)), height=2.8)
    s = seen.layer.window_size
    height, width = -(-rows // s) * s, -(-columns // s) * s  # the padded grid
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes[0].imshow(seen.picture, cmap="gray", extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))
    axes[0].set_title("image and query", fontsize=8)
    for place, (name, head, weights) in zip(axes[1:], maps, strict=True):
        whole = weights
        if name == "Hi-Fi":
            whole = torch.zeros(height, width)
            whole[found.window[0] : found.window[0] + s, found.window[1] : found.window[1] + s] = weights
        place.imshow(whole, cmap="viridis", extent=extent)
        place.set_title(f"{name} head {head}", fontsize=8)
    for place in axes:
        place.plot(query[1], query[0], "+", color=COLORS[1])
        place.set_axis_off()
    drawn.suptitle(f"Weights of the middle token: windows' means in Lo-Fi, its own window in Hi-Fi ({seen.name})")
    return drawn


def sampling_places(offsets: list[Tensor], cell: tuple[int, int], picture: Tensor) -> object:
    """LITv1's figure: 64 places of the image that one token of the last map is merged from, its own cell in green."""
    size = picture.shape[0]
    points = pixel_positions(trace_offsets(offsets, cell), size)
    side = size / offsets[0].shape[1]
    drawn, axes = figure(width=5, height=5)
    axes.imshow(picture)
    left, top = cell[1] * side, cell[0] * side
    axes.plot([left, left + side, left + side, left, left], [top, top, top + side, top + side, top], color=COLORS[2],
              label="the token's own cell")  # fmt: skip
    axes.plot(points[:, 0], points[:, 1], ".", color=COLORS[1], label=f"{len(points)} sampling places")
    axes.set(xlabel="x (pixels)", ylabel="y (pixels)", xlim=(0, size), ylim=(size, 0))
    axes.set_title("Where one token of the last map samples the image")
    axes.grid(False)
    drawn.legend(loc="outside lower center", ncols=2)
    return drawn
