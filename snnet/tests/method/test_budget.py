"""Choosing a configuration by accuracy within budgets."""

import pytest

from paperkit.errors import UserError
from snnet.method.budget import OperatingPoint, select


def point(i: int, flops: int, params: int, acc1: float | None, latency: float | None = None) -> OperatingPoint:
    return OperatingPoint(i, f"c{i}", flops, params, acc1, latency)


POINTS = [
    point(0, 10, 5, 70.0, 1.0),
    point(1, 20, 9, 80.0, 3.0),
    point(2, 30, 6, 79.0, 2.0),
    point(3, 25, 9, 80.0, 4.0),
]


@pytest.mark.parametrize(
    ("budgets", "chosen"),
    [
        ({}, 1),  # of two equally accurate the cheaper
        ({"flops": 19}, 0),
        ({"flops": 20}, 1),
        ({"params": 8}, 2),
        ({"latency": 2.0}, 2),
        ({"flops": 25, "latency": 2.5}, 0),
        ({"flops": 30, "params": 9, "latency": 3.0}, 1),
    ],
)
def test_selection_by_accuracy(budgets: dict[str, float], chosen: int) -> None:
    assert select(POINTS, **budgets) == chosen


def test_selection_without_figures() -> None:
    unknown = [point(p.config_id, p.flops, p.params, None) for p in POINTS]
    assert select(unknown, flops=29) == 3
    with pytest.raises(UserError, match="no latencies are known"):
        select(unknown, latency=5)
    with pytest.raises(UserError, match=r"the nearest is 2 \(c2: params 6, latency 2\)"):
        select(POINTS[1:], params=5.9, latency=2)
