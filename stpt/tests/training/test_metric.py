"""The metric of a run, from what the network gives to the figures; files of detections and of a classifier."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmaction.structures import ActionDataSample
from mmengine.evaluator import Evaluator

from paperkit.errors import UserError
from paperkit.training.openmmlab import own_scope
from stpt.method.detection_map import ACTIVITYNET, THUMOS14
from stpt.training.external_classifier import name_by_classifier, read_classifier
from stpt.training.found_actions import Found, read_results, write_results
from stpt.training.metric import TADMetric
from stpt.training.scoring import join, read_truth, usual_thresholds
from stpt.training.truth_policies import POLICIES

LEFT_OUT = "video_test_0000270"


def truth_file(folder: Path) -> Path:
    """Of the subset test one video with actions, one without, one that a policy leaves out; one of another subset."""
    walk, jump = {"label": "walk", "segment": [2, 6]}, {"label": "jump", "segment": [10, 13]}
    database = {
        "a": {"subset": "test", "duration": 20.0, "annotations": [walk, walk, jump]},
        "b": {"subset": "test", "duration": 20.0, "annotations": []},
        LEFT_OUT: {"subset": "test", "duration": 20.0, "annotations": [walk]},
        "other": {"subset": "training", "duration": 9.0, "annotations": [walk]},
    }
    (folder / "truth.json").write_text(json.dumps({"database": database}))
    return folder / "truth.json"


def sample(video: str, offset: int, cells: list[tuple[float, float, int, float]], classes: int = 2) -> ActionDataSample:
    """What the network leaves: cells (start frame, end frame, class, score) of a clip at 10 frames a second."""
    made = ActionDataSample()
    made.set_metainfo({"video": video, "offset": offset, "sample_fps": 10.0, "duration": 20.0, "frame_num": 128})
    scores = torch.zeros(len(cells), classes + 1)
    for row, (*_, label, score) in enumerate(cells):
        scores[row, label] = score
    made.pred_segments = torch.tensor([cell[:2] for cell in cells])
    made.pred_scores = scores
    return made


RUN = [  # jump is class 1, walk 2
    sample("a", 64, [(0.0, 0.0, 2, 0.0), (36.0, 66.0, 1, 0.9)]),
    sample("a", 0, [(20.0, 60.0, 2, 0.8), (150.0, 170.0, 2, 0.3)]),
    sample(LEFT_OUT, 0, [(20.0, 60.0, 2, 0.7), (0.0, 0.0, 1, 0.0)]),
    sample("other", 0, [(0.0, 10.0, 2, 0.95), (0.0, 0.0, 1, 0.0)]),
    sample("b", 0, [(0.0, 10.0, 1, 0.95), (0.0, 0.0, 1, 0.0)]),
]


def test_the_registered_metric_scores_a_run(tmp_path: Path) -> None:
    """By mmengine's own evaluator: windows of a video in any order, seconds from offsets, other subsets ignored."""
    options = {"truth": str(truth_file(tmp_path)), "subset": "test", "thresholds": [0.5, 0.9]}
    config = {"type": "TADMetric", "output": str(tmp_path / "found.json"), **options}
    metric = own_scope("stpt").METRICS.build(config)
    evaluator = Evaluator(metric)
    evaluator.process(RUN, None)
    values = evaluator.evaluate(len(RUN))
    # jump: 1. walk: found once in each video, but one of them stands twice, so 2 of 3.
    assert values["mAP"] == values["mAP@0.9"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert values["AR@100"] == pytest.approx(100)
    found = read_results(tmp_path / "found.json")
    assert found["a"].labels == ("jump", "walk", "walk")
    np.testing.assert_allclose(found["a"].segments, [[10, 13], [2, 6], [15, 17]], atol=1e-5)


def test_policies_differ_where_they_say_so(tmp_path: Path) -> None:
    truth = str(truth_file(tmp_path))
    values = {}
    for policy in POLICIES:
        metric = TADMetric(truth, "test", policy, thresholds=[0.5])
        metric.process(None, [one.to_dict() for one in RUN])
        values[policy] = metric.compute_metrics(metric.results)["mAP"]
    # Video b costs jump half: its false positive ranks first. Walk: the double is gone, and so is the left out video.
    assert values == {"afsd": pytest.approx(100 * (1 + 2 / 3) / 2), "opentad": pytest.approx(100 * (0.5 + 1) / 2)}
    assert len(read_truth(truth, "test", "opentad").annotations.videos) == 2
    with pytest.raises(UserError, match="policy 'own' is none of afsd, opentad"):
        read_truth(truth, "test", "own")


def classifier_file(folder: Path) -> Path:
    content = {
        "class": ["walk", "jump"],
        "results": {"a": [0.9, 0.2], "b": [0, 1], LEFT_OUT: [0.5, 0.1], "other": [1, 0]},
    }
    (folder / "classifier.json").write_text(json.dumps(content))
    return folder / "classifier.json"


def test_one_class_is_scored_with_and_without_a_classifier(tmp_path: Path) -> None:
    """Without one there is no figure that looks like that of all classes."""
    run = [sample("v_a", 0, [(20.0, 60.0, 1, 0.8), (100.0, 130.0, 1, 0.7)], classes=1)]
    options: dict[str, Any] = {"truth": str(truth_file(tmp_path)), "subset": "test", "classes": ["action"]}
    figures = []
    for classifier in (None, str(classifier_file(tmp_path))):
        metric = TADMetric(**options, thresholds=[0.5], classifier=classifier, output=str(tmp_path / "found.json"))
        metric.process(None, [one.to_dict() for one in run])
        figures.append(metric.compute_metrics(metric.results))
    plain, named = figures
    assert "mAP" not in plain and plain["one_class/mAP"] == named["one_class/mAP"] == pytest.approx(50.0)
    # Both are called walk, of which one is: 1 of 3, and jump is not found.
    assert named["mAP"] == pytest.approx(100 / 3 / 2)
    found = read_results(tmp_path / "found.json")["a"]
    assert found.labels == ("walk", "walk") and found.scores == pytest.approx([0.72, 0.63])


def test_top_two_names_and_videos_without_scores(tmp_path: Path) -> None:
    classifier = read_classifier(classifier_file(tmp_path))
    one = Found(np.array([[1.0, 2.0]]), np.array([0.5]), ("action",))
    found = name_by_classifier({"v_a": one}, classifier, top=2)["v_a"]
    assert found.labels == ("walk", "jump") and found.scores == pytest.approx([0.45, 0.1])
    with pytest.raises(UserError, match="no scores of 1 videos with detections, such as c"):
        name_by_classifier({"c": one}, classifier)
    (tmp_path / "short.json").write_text('{"class": ["walk"], "results": {"a": [1, 2]}}')
    with pytest.raises(UserError, match="a has no 1 scores"):
        read_classifier(tmp_path / "short.json")


def test_unknown_names_are_told(tmp_path: Path) -> None:
    results = {
        "a": Found(np.array([[0.0, 1.0]]), np.array([0.5]), ("swim",)),
        "z": Found(np.array([[0.0, 1.0]]), np.array([0.5]), ("walk",)),
    }
    joined = join(results, read_truth(str(truth_file(tmp_path)), "test", "afsd"))
    assert joined.unknown == {"swim": 1} and joined.strangers == ("z",) and joined.silent == ("a", LEFT_OUT)


def test_thresholds_are_those_of_the_data_set() -> None:
    assert usual_thresholds(["Billiards"]) == THUMOS14 and usual_thresholds(["walk"]) == ACTIVITYNET


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classifier": "scores.json"}, "of the one class 'action' only"),
        ({"post": {"sigme": 1}}, "sigme"),
        ({"subset": "validation"}, "no video is of the subset 'validation'"),
    ],
)
def test_impossible_settings_are_one_line(options: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        TADMetric(str(truth_file(tmp_path)), **options)


def test_a_network_of_other_classes_is_refused(tmp_path: Path) -> None:
    metric = TADMetric(str(truth_file(tmp_path)))
    with pytest.raises(UserError, match="the network has 3 classes, and the truth has 2"):
        metric.process(None, [sample("a", 0, [(0.0, 1.0, 1, 0.5)], classes=3).to_dict()])


def test_detections_read_back_and_bad_ones_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    write_results(path, {"a": Found(np.array([[0.25, 1.5]]), np.array([0.5]), ("walk",))}, "made")
    assert read_results(path)["a"].segments.tolist() == [[0.25, 1.5]]
    good = {"label": "walk", "score": 0.5, "segment": [0, 1]}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"score": "high"}, "a, detection 1 has the score high"),
        ({"segment": [1]}, r"has the segment \[1\]"),
        ({"label": 3}, "without a label"),
    ]
    for change, words in bad:
        path.write_text(json.dumps({"results": {"a": [{**good, **change}]}}))
        with pytest.raises(UserError, match=words):
            read_results(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="no file of detections"):
        read_results(path)
