"""The pictures of a search: that they draw, and that the numbers in them are what they say."""

import math
from pathlib import Path

from focusformer.figures.efficiency import draw_efficiency
from focusformer.figures.front import draw_fronts
from focusformer.figures.policy import choice_shares, draw_policy
from focusformer.figures.ranks import draw_ranks, kendall_tau
from focusformer.figures.sampled_costs import draw_sampled_costs
from focusformer.figures.sampler_curves import draw_sampler_curves, smoothed
from focusformer.method.architecture import SPACES, Architecture
from paperkit.results.report import save_figure

DIGITS = SPACES["digits"]
SAMPLES = [Architecture(16, (1,), (2.0,)), Architecture(16, (4, 2), (2.0, 0.5))]


def test_shares_are_counted_among_the_samples_that_have_the_layer() -> None:
    shares = choice_shares(SAMPLES, DIGITS)
    assert shares["depth"] == [[0.5, 0.5, 0]] and shares["embed"] == [[1, 0, 0, 0]]
    heads = shares["heads"]
    assert [row[0] for row in heads] == [0.5, 0, 0.5] and [row[1] for row in heads] == [0, 1, 0]
    assert all(math.isnan(row[2]) for row in heads)
    assert [row[1] for row in shares["ratios"]] == [1, 0, 0, 0]


def test_rank_correlation_and_smoothing() -> None:
    assert kendall_tau([1, 2, 3], [10, 20, 30]) == 1 and kendall_tau([1, 2, 3], [3, 2, 1]) == -1
    assert smoothed([1.0, 0.0], keep=0.5) == [1.0, 0.5]


def test_only_the_front_is_a_line() -> None:
    points = [(1.0, 60.0), (2.0, 50.0), (3.0, 70.0)]
    (panel,) = draw_fronts({"E": points}, "MACs", "accuracy, %", "front").axes
    assert [list(map(float, xs)) for xs in (line.get_xdata() for line in panel.lines)] == [[1, 2, 3], [1, 3]]


def test_every_picture_is_written(tmp_path: Path) -> None:
    log = {"step": [0.0, 2.0, 4.0], "anchor": [0.0, 1.0, 0.0], "reward": [0.1, 0.2, 0.3]}
    log |= {"entropy": [1.0, 0.9, 0.8], "feasible": [1.0, 1.0, 1.0], "distance": [0.1, 0.1, 0.0]}
    shares = choice_shares(SAMPLES, DIGITS)
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


def test_a_policy_read_again_from_json_draws() -> None:
    """Where no sample has a layer the share is nan, and JSON's null."""
    shares = choice_shares(SAMPLES[:1], DIGITS)
    shares = {kind: [[None if math.isnan(x) else x for x in row] for row in rows] for kind, rows in shares.items()}
    assert draw_policy({"budget 1": shares}, DIGITS, "policy").axes
