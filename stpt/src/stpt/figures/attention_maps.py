"""Where one token looks: inside its window in local stages, along the whole clip in global ones.

Shapes: T frames, H height, W width of a stage's map, C channels; S columns of the picture.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from paperkit.results.report import COLORS, figure, style
from stpt.method.attention import GlobalAttention, LocalAttention
from stpt.method.backbone import Backbone

COLUMNS = 13
Place = tuple[int, int, int]
"""Frame, row and column of a token."""


def attention_map(layer: LocalAttention | GlobalAttention, x: Tensor, place: Place) -> Tensor:
    """(T, H, W), how much the token at `place` takes from each token, the mean over heads; it sums to 1.

    Args:
        x: (T, H, W, C), what the layer is given.
    """
    seen = torch.zeros(x.shape[:3])
    if isinstance(layer, LocalAttention):
        window = [min(most, side) for most, side in zip(layer.window, x.shape, strict=False)]
        first = [at // side * side for at, side in zip(place, window, strict=True)]
        inside = tuple(slice(start, start + side) for start, side in zip(first, window, strict=True))
        cut = x[inside]
        q, k, _ = layer.qkv(cut.flatten(0, 2)).unflatten(-1, (3, layer.heads, -1)).permute(1, 2, 0, 3)
        at = _raster([here - start for here, start in zip(place, first, strict=True)], cut.shape)
        seen[inside] = _weights(q[:, at], k).reshape(cut.shape[:3])
        return seen
    q, k, _ = (part[0] for part in layer.queries_keys_values(x[None]))
    reduced = [-(-side // ratio) for side, ratio in zip(x.shape, layer.ratio, strict=False)]
    shared = _weights(q[:, _raster(place, x.shape)], k).reshape(reduced)
    for axis, ratio in enumerate(layer.ratio):  # a reduced token's share goes to the tokens that it was made of
        shared = (shared / ratio).repeat_interleave(ratio, axis)
    shared = shared[: x.shape[0], : x.shape[1], : x.shape[2]]
    return shared / shared.sum()


@torch.no_grad()
def attention_maps(backbone: Backbone, clip: Tensor, where: Sequence[float]) -> dict[str, Tensor]:
    """The maps of the last layer of each stage that attends, by the stage's name.

    Args:
        backbone: in eval mode.
        clip: (channels, T, H, W), one clip.
        where: frame, row and column of the token that looks, each in [0, 1] of the clip.
    """
    given: dict[int, Tensor] = {}
    layers = [[*stage.get_submodule("blocks").children()][-1].get_submodule("attn") for stage in backbone.stages]
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, i=i: given.update({i: inputs[0][0]}))
        for i, layer in enumerate(layers)
    ]
    try:
        backbone(clip[None])
    finally:
        for hook in hooks:
            hook.remove()
    maps = {}
    for i, x in given.items():
        layer = layers[i]
        if isinstance(layer, LocalAttention | GlobalAttention):
            frame, row, column = (min(int(part * side), side - 1) for part, side in zip(where, x.shape, strict=False))
            kind = "local" if isinstance(layer, LocalAttention) else "global"
            maps[f"stage {i + 1}, {kind}"] = attention_map(layer, x, (frame, row, column))
    return maps


def draw_attention_maps(
    frames: Tensor, networks: Mapping[str, Mapping[str, Tensor]], where: Sequence[float], title: str = ""
) -> Figure:
    """A row for each stage of each network, along the clip from left to right: attention summed over equal spans.

    Args:
        frames: (T, S, S) or (T, S, S, 3) of the clip in [0, 1].
        networks: name -> maps (T', H', W') by stage.
        where: frame, row and column of the token that looks, in [0, 1] of the clip.
        title: says what to see.
    """
    rows = {f"{name}\n{stage}": seen for name, maps in networks.items() for stage, seen in maps.items()}
    columns = min(COLUMNS, *(seen.shape[0] for seen in rows.values()))
    height, width = frames.shape[1:3]
    shown = [int((i + 0.5) * len(frames) / columns) for i in range(columns)]
    strip = _side_by_side(frames[shown].reshape(columns, height, width, -1), seam=1.0)
    with style():
        drawn, panels = figure(len(rows), 1, width=11.0, height=1.0 + 0.85 * len(rows), squeeze=False, sharex=True)
        for panel, (name, seen) in zip(panels[:, 0], rows.items(), strict=True):
            spans = F.adaptive_avg_pool3d(seen[None, None], (columns, *seen.shape[1:]))[0, 0]
            heat = F.interpolate(spans[:, None], size=(height, width)) / max(float(spans.max()), 1e-12)
            strength = _side_by_side(heat.permute(0, 2, 3, 1), seam=0.0)[..., 0]
            panel.imshow(strip if strip.shape[-1] == 3 else strip[..., 0], cmap="gray", vmin=0, vmax=1)
            panel.imshow(strength, cmap="autumn", alpha=0.75 * strength, vmin=0, vmax=1)  # nothing where 0
            column = min(int(where[0] * columns), columns - 1)
            at = column * (width + 1) + where[2] * width - 0.5, where[1] * height - 0.5
            panel.plot(*at, "+", color=COLORS[5], markersize=9)
            panel.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
            panel.set(yticks=[])
            panel.grid(False)
        panel.set_xticks([i * (width + 1) + width / 2 for i in range(columns)], [str(place) for place in shown])
        panel.set_xlabel("frame of the clip; yellow: most attention, dark: little, no colour: none")
        drawn.suptitle(title or "What the token at the cross attends to", fontsize=10)
    return drawn


def _raster(place: Sequence[int], size: Sequence[int]) -> int:
    return (place[0] * size[1] + place[1]) * size[2] + place[2]


def _weights(query_hd: Tensor, keys_hnd: Tensor) -> Tensor:
    """(h, d) and (h, n, d) -> (n,): softmax over the keys, mean over the heads."""
    scores = torch.einsum("hd,hnd->hn", query_hd, keys_hnd) / query_hd.shape[-1] ** 0.5
    return scores.softmax(-1).mean(0)


def _side_by_side(pictures: Tensor, seam: float) -> NDArray[np.float32]:
    """(n, H, W, c) -> (H, n (W + 1), c), a line of one value after each."""
    return F.pad(pictures.float(), (0, 0, 0, 1), value=seam).permute(1, 0, 2, 3).flatten(1, 2).numpy()
