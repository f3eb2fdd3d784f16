"""Soft-NMS of many problems at once against plain loops; from windows to detections."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from stpt.method.soft_nms import (
    PADDED,
    PostProcess,
    Windows,
    detections,
    hard_nms,
    soft_nms,
    soft_nms_many,
    vote,
)


def plain(segments: Any, scores: Any, sigma: float, top_k: int, least: float, afsd: bool) -> dict[int, float]:
    """Candidate -> decayed score, in the order of taking, by loops over single numbers."""
    left = {i: float(score) for i, score in enumerate(scores) if score >= least}
    taken: dict[int, float] = {}
    while len(left) > int(afsd) and len(taken) < top_k:
        best = max(left, key=lambda i: left[i])
        taken[best] = left.pop(best)
        a, b = map(float, segments[best])
        for i in list(left):
            start, end = map(float, segments[i])
            common = max(min(b, end) - max(a, start), 0.0)
            left[i] *= math.exp(-((common / (max(b - a, 1e-5) + end - start - common)) ** 2) / sigma)
            if left[i] < least:
                del left[i]
    return taken


def made(count: int, seed: int, length: float = 30.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    start = generator.random(count) * length
    segments = np.stack([start, start + 0.5 + generator.random(count) * 8], 1)
    return segments, np.round(generator.random(count), 3)  # rounded: some scores are equal


@pytest.mark.parametrize("rule", ["corrected", "afsd"])
@pytest.mark.parametrize(("sigma", "top_k", "least"), [(0.5, 5000, 0.001), (0.85, 20, 1e-9), (0.3, 5000, 0.2)])
def test_many_problems_are_each_what_plain_loops_give(rule: Any, sigma: float, top_k: int, least: float) -> None:
    problems = [made(count, seed) for seed, count in enumerate([70, 0, 1, 2, 130, 33])]
    for (segments, scores), found in zip(problems, soft_nms_many(problems, sigma, top_k, least, rule), strict=True):
        wanted = plain(segments, scores, sigma, top_k, least, rule == "afsd")
        order = sorted(wanted) if rule == "afsd" else list(wanted)
        assert found.which.tolist() == order
        np.testing.assert_allclose(found.scores, [wanted[i] for i in order], rtol=1e-9)


def test_more_candidates_than_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PADDED > 1000
    problems = [made(40, seed) for seed in range(7)]
    whole = soft_nms_many(problems)
    monkeypatch.setattr("stpt.method.soft_nms.PADDED", 90)
    for one, other in zip(whole, soft_nms_many(problems), strict=True):
        assert one.which.tolist() == other.which.tolist() and one.scores.tolist() == other.scores.tolist()


def test_corrected_rule_only_adds_the_last() -> None:
    """Scores fall; a lone candidate is kept, which the released rule loses."""
    segments, scores = made(50, 3)
    corrected, released = soft_nms(segments, scores), soft_nms(segments, scores, rule="afsd")
    assert (np.diff(corrected.scores) <= 0).all()
    assert sorted(corrected.which[:-1]) == released.which.tolist()
    assert soft_nms(segments[:1], scores[:1]).which.tolist() == [0]
    assert soft_nms(segments[:1], scores[:1], rule="afsd").which.size == 0


def test_scores_that_are_all_too_low_leave_nothing() -> None:
    assert [len(kept.which) for kept in soft_nms_many([made(5, 0), made(9, 1)], min_score=1.5)] == [0, 0]


def test_tensors_stay_as_they_were() -> None:
    """The released code decays scores in place."""
    segments, scores = (torch.from_numpy(array).float() for array in made(20, 1))
    before = scores.clone()
    found = soft_nms(segments, scores)
    assert torch.equal(scores, before) and found.scores.dtype == np.float32


@pytest.mark.parametrize("options", [{"sigma": 0}, {"min_score": 0}, {"top_k": 0}, {"rule": "hard"}])
def test_settings_without_meaning_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match="above 0"):
        soft_nms(*made(5, 0), **options)
    with pytest.raises(ValueError, match=r"segments \(5, 2\) and scores \(4,\)"):
        soft_nms(made(5, 0)[0], made(4, 0)[1])


def test_hard_nms_drops_from_half_overlap_on() -> None:
    segments = np.array([[0, 10], [0, 5], [0, 4.9], [20, 30], [0, 10]])
    assert hard_nms(segments, np.array([0.9, 0.8, 0.7, 0.95, 0.9])).tolist() == [3, 4, 2]
    assert hard_nms(segments, np.array([0.9, 0.8, 0.7, 0.95, 0.9]), top_k=1).tolist() == [3]


def test_segments_without_length() -> None:
    """One of them is left by hard NMS; nothing overlaps them for soft-NMS; whole numbers will do."""
    segments, scores = [[5, 5], [5, 5], [0, 10]], [3, 2, 4]
    assert hard_nms(segments, scores).tolist() == [2, 0]
    assert soft_nms(segments, scores).scores.tolist() == [4, 3, 2]


def test_votes_are_weighted_by_score_and_overlap() -> None:
    segments = np.array([[0.0, 10.0], [1.0, 10.0], [0.0, 4.0]])
    moved = vote(segments[:1], segments, np.array([0.8, 0.4, 0.9]), 0.5)
    np.testing.assert_allclose(moved, [[0.36 / 1.16, 10.0]])
    np.testing.assert_allclose(vote(segments[:1], segments, np.array([0.8, 0.4, 0.9]), 0.95), segments[:1])


def two_windows() -> Windows:
    """Two windows of 64 frames at 10 a second, the second from frame 32; classes 1 and 2."""
    segments = np.array([[[40.0, 60.0], [0.0, 8.0]], [[8.0, 28.0], [40.0, 64.0]]], np.float32)
    scores = np.array([[[0.0, 0.9, 0.005], [0.0, 0.0, 0.5]], [[0.0, 0.8, 0.0], [0.0, 0.0, 0.4]]], np.float32)
    return Windows(segments, scores, np.array([0, 32]), 10.0, duration=9.0)


def test_detections_are_in_seconds_of_the_video_and_suppressed_across_windows() -> None:
    """The same action seen in both windows decays once by exp(-1 / 0.5); a score of at most `above` is none."""
    found = detections([two_windows()])[0]
    decayed = 0.8 * math.exp(-1 / 0.5)
    np.testing.assert_allclose(found.scores, [0.9, 0.5, 0.4, decayed], rtol=1e-6)
    np.testing.assert_allclose(found.segments, [[4, 6], [0, 0.8], [7.2, 9.0], [4, 6]], rtol=1e-6)
    assert found.labels.tolist() == [1, 2, 2, 1]


def test_released_detections_pass_the_end_of_the_video_and_lose_the_last() -> None:
    """Each class of two candidates keeps one."""
    found = detections([two_windows()], PostProcess(rule="afsd", cut=False))[0]
    assert found.labels.tolist() == [1, 2] and found.segments.tolist() == pytest.approx(np.array([[4, 6], [0, 0.8]]))


def test_hard_rule_voting_and_videos_without_candidates() -> None:
    empty = two_windows()._replace(scores=np.zeros((2, 2, 3), np.float32))
    none, found = detections([empty, two_windows()], PostProcess(rule="hard", voting=0.9))
    assert none.segments.shape == (0, 2) and not len(none.labels)
    np.testing.assert_allclose(found.scores, [0.9, 0.5, 0.4])
    np.testing.assert_allclose(found.segments[0], [4, 6], rtol=1e-6)


def test_a_detection_behind_the_end_is_left_out() -> None:
    assert detections([two_windows()._replace(duration=7.0)])[0].labels.tolist() == [1, 2, 1]
