"""The paper's pictures: that they draw, and the numbers behind them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made import faseg
from PIL import Image

from faseg.figures.consistency import draw_consistency, map_overlap
from faseg.figures.map_grid import draw_maps, similarity
from faseg.figures.mean_iou import draw_mean_iou
from faseg.figures.of_a_network import draw_network
from faseg.figures.segmentations import draw_segmentations, painted
from faseg.figures.windows import draw_windows
from faseg.models.faseg import FASeg
from paperkit.results.report import save_figure


def test_every_picture_is_written(tmp_path: Path) -> None:
    """Of colour pictures that are not square, too."""
    picture, labels = torch.rand(32, 64, 3), torch.randint(3, (32, 64))
    labels[:4] = 255
    drawn = {
        "maps": draw_maps(picture, {"a": [torch.rand(4, 8), None]}, ["layer 0", "layer 1"], "title"),
        "signed": draw_maps(picture[..., 0], {"a": [torch.randn(4, 8)]}, ["layer 0"], "title", signed=True),
        "windows": draw_windows([picture], [torch.rand(4, 8)], [torch.tensor([31, 3])]),
        "consistency": draw_consistency({"base": [0.5, 0.7]}, ["0, 1", "1, 2"]),
        "mean_iou": draw_mean_iou({"base": [[10.0, 20.0]]}, {1: (15.0, [20.0]), 4: (14.0, [19.0])}, "million"),
        "segmentations": draw_segmentations([picture], [labels], {"base": [labels]}, ["sky", "road", "tree"]),
    }
    for name, figure in drawn.items():
        save_figure(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_windows_are_drawn_at_their_cells() -> None:
    """Cell 11 of a 4 x 8 grid over 32 x 64 pixels: row 1, column 3."""
    above, below = draw_windows([torch.rand(32, 64)], [torch.rand(4, 8)], [torch.tensor([11])]).axes
    assert above.patches[0].get_xy() == (23.5, 7.5) and above.patches[0].get_width() == 8
    assert below.patches[0].get_xy() == (2.5, 0.5)


def test_similarity_and_overlap_are_cosines() -> None:
    keys = torch.randn(5, 3, 4)
    found = similarity(torch.stack([2 * keys[:, 1, 2], -keys[:, 1, 2]]), keys)
    assert found.shape == (2, 3, 4) and found[0, 1, 2] == pytest.approx(1) and found[1, 1, 2] == pytest.approx(-1)
    first, second = torch.eye(4)[None, :2], torch.eye(4)[None, [0, 3]]
    assert map_overlap(first, second, torch.tensor([[True, False]])) == pytest.approx(1)
    assert map_overlap(first, second, torch.tensor([[True, True]])) == pytest.approx(0.5)


def test_nothing_is_black_and_classes_differ() -> None:
    colors = painted(torch.tensor([[255, 0, 1, 11]]), 12)
    assert colors[0, 0].sum() == 0 and len({tuple(color.tolist()) for color in colors[0]}) == 4


def test_a_network_is_drawn_on_a_picture(tmp_path: Path) -> None:
    """By the command, from a folder, on a picture of odd size; chosen windows only where there are any."""
    backbone = dict(kind="resnet", blocks=[1, 1, 1, 1], stem=8, width=8, outputs=16)
    parts = dict(pixel_decoder=dict(layers=1, dim_feedforward=32, nheads=4), conv_dim=32, mask_dim=32, num_classes=4)
    decoder = dict(num_queries=6, nheads=4, dim_feedforward=32, layers=5, omega=2)
    names, picture = ["sky", "road", "tree", "car"], tmp_path / "picture.png"
    FASeg(backbone, decoder=decoder, class_names=names, shortest=64, **parts).save_pretrained(tmp_path / "network")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 91, 3), dtype=np.uint8)).save(picture)
    words = ("figures", tmp_path / "network", "--engine", "segmentation")
    assert "its figures need --image FILE" in faseg.refused(*words, cwd=tmp_path)
    drawn = faseg.here(*words, "--image", picture, cwd=tmp_path).out
    paths = [tmp_path / "network" / "figures" / f"{name}.png" for name in ("attention", "positions", "consistency")]
    assert all(path.stat().st_size > 5000 for path in paths) and "windows.png" in drawn
    plain = FASeg(backbone, decoder={**decoder, "layers": 2, "hrca": False}, **parts).eval()
    assert len(draw_network(plain, torch.rand(3, 64, 64), tmp_path / "plain")) == 3
