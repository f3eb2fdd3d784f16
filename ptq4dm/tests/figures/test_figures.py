"""The pictures: that they draw, and that what they say is computed as it says."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from paperkit.results.report import save_figure
from ptq4dm.figures.bits import draw_quality, draw_snr
from ptq4dm.figures.errors import draw_error_scatter, draw_residuals
from ptq4dm.figures.samples import draw_grid, draw_paths
from ptq4dm.figures.statistics import draw_sigmas, draw_statistics

STEPS = [1, 51, 101]
NOISE = torch.randn(2000, generator=torch.Generator().manual_seed(0))
UNIFORM = torch.rand(2000, generator=torch.Generator().manual_seed(1))
ROW = torch.tensor([0.3, 0.2, 0.1])
FIGURES: dict[str, Callable[[], Figure]] = {
    "scatter": lambda: draw_error_scatter(NOISE, 0.25 * NOISE + 1, 51),
    "residuals": lambda: draw_residuals({51: UNIFORM, 1: NOISE}),
    "statistics": lambda: draw_statistics(STEPS, ROW, ROW, ROW[:, None].expand(3, 3), ROW),
    "sigmas": lambda: draw_sigmas(STEPS, ROW, ROW / 2, ROW / 3),
    "snr": lambda: draw_snr(STEPS, {"w4a8": [9.0, 8.0, 7.0]}, [100.0, 1.0, 0.1], {"rule": [8, 4, 4]}),
    "quality": lambda: draw_quality({"float": (100.0, 1.0, 0.0), "W4A8": (4.0, 2.0, 0.1)}, "cost"),
    "grid": lambda: draw_grid({"float": torch.zeros(4, 1, 8, 8), "W4A8, signed k": torch.ones(4, 1, 8, 8)}, "samples"),
    "colours": lambda: draw_grid({"float": torch.zeros(4, 3, 8, 8)}, "samples"),
    "paths": lambda: draw_paths(STEPS[::-1], {f"arm {i}": [0.1, 0.2, 0.3] for i in range(9)}),
}


@pytest.mark.parametrize("name", list(FIGURES))
def test_picture_is_written(name: str, tmp_path: Path) -> None:
    drawn = FIGURES[name]()
    save_figure(drawn, tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 5000
    assert drawn.get_suptitle() or any(axes.get_title(loc="left") for axes in drawn.axes)


def test_line_and_correlation_are_those_of_the_points() -> None:
    title = FIGURES["scatter"]().axes[0].get_title(loc="left")
    assert "t = 51, slope k = 0.250, r = 1.00" in title


def test_normality_is_tested_of_every_step() -> None:
    """Uniform values are told from normal ones."""
    points = FIGURES["residuals"]().axes[1].lines[0].get_xydata()
    assert points[:, 0].tolist() == [51, 1]
    assert points[0, 1] < 1e-6 < 0.01 < points[1, 1]


def test_samples_are_put_side_by_side_in_grey_or_colour() -> None:
    for name in ("grid", "colours"):
        shown = FIGURES[name]().axes[0].images[0].get_array()
        assert shown.shape == (8, 32, 3) and float(shown.min()) == 0.5
