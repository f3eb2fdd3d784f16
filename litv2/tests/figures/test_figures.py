"""Figures of a classifier on an image, and the attention weights under them against the layer's own output."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made import LITV2
from PIL import Image

from litv2.figures.attention_maps import query_weights
from litv2.method.hilo import HiLo
from litv2.models.classifier import LITv2
from paperkit.errors import UserError

SMALL = dict(embed_dim=64, depths=(1, 1, 1, 1), num_heads=(2, 4, 8, 16), num_classes=5)  # head width 32, as published


@pytest.mark.parametrize(("grid", "window"), [((4, 6), 2), ((5, 7), 3)])
@pytest.mark.parametrize("query", [(0, 0), (3, 4), (3, 5)])
def test_weights_are_those_of_the_output(grid: tuple[int, int], window: int, query: tuple[int, int]) -> None:
    """The weighted values, through the projections, are what the layer gives for that token."""
    layer = HiLo(24, 6, window, 0.5).double()
    x = torch.randn(1, *grid, 24, dtype=torch.float64)
    found = query_weights(layer, x, query)
    assert found.lofi is not None and found.hifi is not None
    padded = torch.nn.functional.pad(x, (0, 0, 0, -grid[1] % window, 0, -grid[0] % window))
    v_knd = layer.read_pooled(padded)[0].unflatten(-1, (2, 3, -1))[:, 1]
    lofi = layer.l_proj(torch.einsum("nk,knd->nd", found.lofi.flatten(1), v_knd).flatten())
    top, left = found.window
    qkv = layer.h_qkv(padded)[0, top : top + window, left : left + window]
    hifi = layer.h_proj(torch.einsum("nyx,yxnd->nd", found.hifi, qkv.unflatten(-1, (3, 3, -1))[:, :, 2]).flatten())
    torch.testing.assert_close(torch.cat((hifi, lofi)), layer(x)[0, query[0], query[1]])


def test_query_outside_the_grid() -> None:
    with pytest.raises(UserError, match="query 4, 0 is outside the grid of 4 x 4"):
        query_weights(HiLo(8, 2), torch.randn(1, 4, 4, 8), (4, 0))


def test_figures_of_a_classifier(tmp_path: Path) -> None:
    LITv2(**SMALL).save_pretrained(tmp_path / "m")
    pixels = np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "i.png")
    common = ["figures", "m", "--engine", "images", "--image", "i.png", "--size", "96"]
    drawn = LITV2.here(*common, "--cell", "[1, 2]", cwd=tmp_path).out
    names = [Path(line).name for line in drawn.split()]
    assert names == ["frequency_maps.png", "attention_maps.png", "sampling_places.png"]
    assert all((tmp_path / "m" / "figures" / name).stat().st_size > 5000 for name in names)
    assert "outside the last map of 3 x 3" in LITV2.refused(*common, "--cell", "[3, 0]", cwd=tmp_path)
