"""Kinds of errors on detections whose kind is plain to see."""

import numpy as np
import pytest

from stpt.method.detection_map import Instances
from stpt.method.errors import KINDS, SLOTS, error_breakdown, kinds_of

TRUTH = Instances(np.array([0, 0, 1]), np.array([1, 2, 1]), np.array([[0.0, 10.0], [20.0, 30.0], [0.0, 10.0]]))
FOUND = [  # video, label, start, end, score, kind
    (0, 1, 0, 10, 0.95, "true positive"),
    (0, 1, 0, 9, 0.9, "double detection"),
    (0, 1, 20, 30, 0.85, "wrong label"),
    (0, 2, 27, 36, 0.8, "localization"),
    (0, 1, 28, 36, 0.7, "confusion"),
    (0, 2, 60, 70, 0.6, "background"),
    (0, 2, 20, 29, 0.5, "true positive"),
    (2, 1, 0, 10, 0.4, "background"),
]


def found() -> Instances:
    table = np.array([row[:5] for row in FOUND])
    return Instances(table[:, 0].astype(int), table[:, 1].astype(int), table[:, 2:4], table[:, 4])


def test_each_kind_is_told() -> None:
    assert [KINDS[number] for number in kinds_of(found(), TRUTH, 0.5)] == [row[5] for row in FOUND]


def test_ranks_fill_slots_of_as_many_as_the_class_has_actions() -> None:
    """Class 1 has two actions, class 2 one: the first slot holds ranks 0 and 1 of the one, 0 of the other."""
    result = error_breakdown(found(), TRUTH)
    assert result.counts.shape == (SLOTS, len(KINDS)) and result.counts.sum() == len(FOUND)
    assert dict(zip(KINDS, result.counts[0], strict=True)) == {
        "true positive": 1, "double detection": 1, "wrong label": 0, "localization": 1, "confusion": 0, "background": 0,
    }  # fmt: skip
    np.testing.assert_allclose(result.shares[:3].sum(1), 1)
    assert result.shares[9].sum() == 0 and (result.missed, result.actions) == (1, 3)


def test_gain_is_what_map_rises_by_without_the_kind() -> None:
    """Class 2 has AP 1/3 behind two errors of one kind each; class 1's errors all rank behind its hit."""
    gains = error_breakdown(found(), TRUTH).gains
    assert gains["localization"] == pytest.approx((1 / 2 - 1 / 3) / 2)
    assert gains["background"] == pytest.approx((1 / 2 - 1 / 3) / 2)
    assert gains["double detection"] == gains["wrong label"] == 0
    with pytest.raises(ValueError, match=r"above 0\.1"):
        error_breakdown(found(), TRUTH, 0.1)
