"""mAP and recall without loops against loops that read like the definition."""

from collections.abc import Sequence

import numpy as np
import pytest

from stpt.method.detection_map import (
    Instances,
    average_recall,
    mean_average_precision,
    precision_recall,
    tiou_of,
)


def made(seed: int, actions: int = 60, detections: int = 500, videos: int = 5, labels: int = 3) -> list[Instances]:
    """Crowded: actions overlap one another, scores are often equal."""
    draw = np.random.default_rng(seed)

    def segments(count: int) -> np.ndarray:
        start = draw.random(count) * 40
        return np.round(np.stack([start, start + 1 + draw.random(count) * 9], 1), 1)

    truth = Instances(draw.integers(0, videos, actions), draw.integers(0, labels, actions), segments(actions))
    scores = np.round(draw.random(detections), 2)
    places = draw.integers(0, videos + 1, detections), draw.integers(0, labels + 1, detections)
    return [Instances(*places, segments(detections), scores), truth]


def plain_ap(found: Instances, truth: Instances, label: int, threshold: float, absent: str = "dropped") -> float:
    """Average precision of one class, detection by detection."""
    assert found.scores is not None
    order = np.argsort(found.scores, kind="stable")[::-1]
    hits: list[bool] = []
    taken: set[int] = set()
    for d in order:
        if found.labels[d] != label or (absent == "dropped" and found.videos[d] not in truth.videos):
            continue
        best, place = -1.0, -1
        for a in range(len(truth)):
            if truth.videos[a] == found.videos[d] and truth.labels[a] == label and a not in taken:
                tiou = tiou_of(found.segments[d : d + 1], truth.segments[a : a + 1])[0]
                if tiou >= threshold and tiou >= best:
                    best, place = tiou, a
        hits.append(place >= 0)
        taken |= {place} if place >= 0 else set()
    total, ap, ceiling, true = int((truth.labels == label).sum()), 0.0, 0.0, sum(hits)
    for number in range(len(hits), 0, -1):
        ceiling = max(ceiling, true / number)
        if hits[number - 1]:
            ap += ceiling / total
            true -= 1
    return ap


@pytest.mark.parametrize("absent", ["dropped", "counted"])
@pytest.mark.parametrize("seed", [0, 1])
def test_map_is_that_of_plain_loops(seed: int, absent: str) -> None:
    found, truth = made(seed)
    result = mean_average_precision(found, truth, (0.2, 0.5), absent)  # type: ignore[arg-type]
    assert result.classes.tolist() == [0, 1, 2]
    wanted = [[plain_ap(found, truth, label, t, absent) for label in range(3)] for t in (0.2, 0.5)]
    np.testing.assert_allclose(result.ap, wanted, rtol=0, atol=1e-12)
    assert 0.05 < result.average < 0.95 and result.mean[0] > result.mean[1]


def test_videos_without_actions_make_the_policies_differ() -> None:
    found, truth = made(2)
    dropped, counted = (mean_average_precision(found, truth, (0.5,), p).average for p in ("dropped", "counted"))  # type: ignore[arg-type]
    assert counted < dropped


def test_pieces_of_pairs_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    found, truth = made(3)
    whole = mean_average_precision(found, truth).ap
    monkeypatch.setattr("stpt.method.detection_map.TOGETHER", 100)
    assert (mean_average_precision(found, truth).ap == whole).all()


def one(segments: Sequence[Sequence[float]], scores: Sequence[float] | None = None) -> Instances:
    """Of one video and class."""
    nothing = np.zeros(len(segments), np.int64)
    return Instances(nothing, nothing, np.array(segments, float), None if scores is None else np.array(scores))


def test_who_finds_its_favourite_taken_takes_the_next() -> None:
    """Both detections prefer the first action; a third, worse one comes too late."""
    truth = one([[0, 10], [2, 12]])
    found = one([[0, 11], [0.5, 10.5], [0, 10]], [0.9, 0.8, 0.7])
    recall, precision = precision_recall(found, truth, 0.5)[0]
    assert recall.tolist() == [0.5, 1.0, 1.0] and precision.tolist() == [1.0, 1.0, 2 / 3]
    assert mean_average_precision(found, truth, (0.5,)).average == 1.0


def test_of_equal_scores_the_last_comes_first() -> None:
    truth = one([[0, 10]])
    assert mean_average_precision(one([[0, 10], [50, 60]], [0.5, 0.5]), truth, (0.5,)).average == 0.5
    assert mean_average_precision(one([[50, 60], [0, 10]], [0.5, 0.5]), truth, (0.5,)).average == 1.0


def test_classes_without_detections_count_as_zero_and_nothing_found_is_zero() -> None:
    found, truth = made(4)
    less = found.only(found.labels != 1)
    assert mean_average_precision(less, truth, (0.2,)).ap[0, 1] == 0
    assert mean_average_precision(found.only(found.labels > 9), truth).average == 0
    with pytest.raises(ValueError, match="needs actions"):
        mean_average_precision(found, truth.only(truth.labels > 9))


def test_segments_without_length_overlap_nothing() -> None:
    assert mean_average_precision(one([[5, 5]], [0.9]), one([[5, 5]]), (0.3,)).average == 0


def test_recall_is_that_of_plain_loops() -> None:
    found, truth = made(5)
    assert found.scores is not None
    wanted = np.zeros(8)
    for most in range(1, 9):
        for threshold in (0.3, 0.6):
            order = np.argsort(found.scores, kind="stable")[::-1]
            for a in range(len(truth)):
                best = [d for d in order if found.videos[d] == truth.videos[a]][:most]
                action = np.repeat(truth.segments[a : a + 1], len(best), 0)
                wanted[most - 1] += (tiou_of(found.segments[best], action) >= threshold).any() / len(truth) / 2
    np.testing.assert_allclose(average_recall(found, truth, 8, (0.3, 0.6)), wanted, atol=1e-12)
