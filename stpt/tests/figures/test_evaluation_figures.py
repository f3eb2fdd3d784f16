"""Pictures of an evaluation show what they are given."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from paperkit.results.report import save_figure
from stpt.figures.ap_heat_map import MOST, draw_ap_heat_map
from stpt.figures.error_breakdown import draw_error_breakdown
from stpt.figures.precision_recall import draw_precision_recall
from stpt.method.errors import KINDS, SLOTS, ErrorBreakdown


def labels(figure: Figure) -> str:
    """All the text that a picture shows."""
    return " | ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_each_class_has_a_curve_and_six_a_name(tmp_path: Path) -> None:
    curves = {f"class{number}": (np.array([0.2, 0.9]), np.array([1.0, 0.5])) for number in range(8)}
    figure = draw_precision_recall(curves, 0.5)
    assert sum(len(line.get_xdata()) == 2 for line in figure.axes[0].lines) == 8
    assert "class5" in labels(figure) and "class6" not in labels(figure) and "2 more classes" in labels(figure)
    save_figure(figure, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5_000
    draw_precision_recall({}, 0.5)


def test_heat_map_has_the_best_class_on_top_and_the_middle_left_out() -> None:
    few = draw_ap_heat_map(np.array([[0.1, 0.9], [0.0, 0.8]]), ["worse", "better"], (0.3, 0.5))
    assert [tick.get_text() for tick in few.axes[0].get_yticklabels()] == ["better", "worse"]
    np.testing.assert_allclose(few.axes[0].images[0].get_array(), [[90, 80], [10, 0]])
    many = draw_ap_heat_map(np.linspace(0, 1, 60)[None], [f"c{number}" for number in range(60)], (0.5,))
    assert len(many.axes[0].get_yticklabels()) == MOST and "20 classes between are left out" in labels(many)


def test_bars_of_the_breakdown_add_up(tmp_path: Path) -> None:
    counts = np.zeros((SLOTS, len(KINDS)), np.int64)
    counts[:3] = [[6, 1, 1, 1, 0, 1], [1, 2, 1, 1, 0, 5], [0, 0, 0, 0, 0, 10]]
    found = ErrorBreakdown(0.5, counts, {name: 0.01 * place for place, name in enumerate(KINDS[1:])}, 4, 16)
    figure = draw_error_breakdown(found)
    tops = [bars[0].get_y() + bars[0].get_height() for bars in figure.axes[0].containers]
    assert tops == pytest.approx([60, 70, 80, 90, 90, 100])
    assert [bar.get_width() for bar in figure.axes[1].containers[0]] == pytest.approx([0, 1, 2, 3, 4])
    assert "25 % of actions missed" in labels(figure)
    save_figure(figure, tmp_path / "errors.png")
