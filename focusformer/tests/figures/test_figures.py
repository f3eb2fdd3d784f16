"""The pictures of a search: that they draw, and that the numbers in them are what they say."""

from pathlib import Path
from typing import Any

from focusformer.figures.efficiency import draw_efficiency
from focusformer.figures.front import draw_fronts
from focusformer.figures.policy import draw_policy
from focusformer.figures.ranks import draw_ranks, kendall_tau
from focusformer.figures.sampled_costs import draw_sampled_costs
from focusformer.figures.sampler_curves import draw_sampler_curves, smoothed
from focusformer.method.architecture import SPACES
from paperkit.results.report import save_figure

DIGITS = SPACES["digits"]


def test_rank_correlation_and_smoothing() -> None:
    assert kendall_tau([1, 2, 3], [10, 20, 30]) == 1 and kendall_tau([1, 2, 3], [3, 2, 1]) == -1
    assert smoothed([1.0, 0.0], keep=0.5) == [1.0, 0.5]


def test_maps_have_a_row_for_each_choice_and_a_column_for_each_layer() -> None:
    shares = {"depth": [1, 0, 0], "embed": [0, 1, 0, 0], "heads": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}
    shares["ratios"] = [[0.25] * 4] * 3
    depth, embed, heads, ratios, _ = draw_policy({"budget 1": shares}, DIGITS, "policy").axes
    assert [bar.get_height() for bar in depth.patches] == [1, 0, 0] and len(embed.patches) == 4
    assert heads.images[0].get_array().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert ratios.images[0].get_array().shape == (4, 3)


def test_only_the_front_is_a_line() -> None:
    points = [(1.0, 60.0), (2.0, 50.0), (3.0, 70.0)]
    (panel,) = draw_fronts({"E": points}, "MACs", "accuracy, %", "front").axes
    assert [list(map(float, xs)) for xs in (line.get_xdata() for line in panel.lines)] == [[1, 2, 3], [1, 3]]


def test_every_picture_is_written(tmp_path: Path) -> None:
    log = {"step": [0.0, 2.0, 4.0], "anchor": [0.0, 1.0, 0.0], "reward": [0.1, 0.2, 0.3]}
    log |= {"entropy": [1.0, 0.9, 0.8], "feasible": [1.0, 1.0, 1.0], "distance": [0.1, 0.1, 0.0]}
    shares: Any = {
        "depth": [0.5, 0.5, 0],
        "embed": [1, 0, 0, 0],
        "heads": [[0.5, 0, 0.5]] * 3,
        "ratios": [[0.25] * 4] * 3,
    }
    drawn = {
        "efficiency": draw_efficiency({"budget 1": {"E": [1.0, 0.5, 0.5], "F1": [0.6]}}, "searches"),
        "policy": draw_policy({"budget 1": shares, "budget 2": shares}, DIGITS, "policy"),
        "ranks": draw_ranks([60.0, 70.0, 80.0], [65.0, 75.0, 70.0], [1.0, 2.0, 3.0], "MACs"),
        "sampled_costs": draw_sampled_costs({"uniform": [1.0, 2.0, 3.0], "focus": [1.0, 1.0]}, [1.5], "MACs"),
        "sampler": draw_sampler_curves(log, ["budget 1", "budget 2"], "sampler"),
    }
    for name, picture in drawn.items():
        save_figure(picture, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
