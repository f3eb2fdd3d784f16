"""`snnet list`: what is listed of which network."""

import shutil
from pathlib import Path

import pytest
from made import here

from paperkit.files.runs import RunFolder
from paperkit.results.metrics import Metrics
from snnet.method.budget import pareto_front
from snnet.models.anchors import SNNet
from snnet.models.released_networks import released_stitches

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def test_list_before_any_training(capsys: pytest.CaptureFixture[str]) -> None:
    """The network of the embedded experiment, with costs and no accuracy; nothing is written."""
    assert here("list") == 0
    shown = capsys.readouterr().out
    assert "23 configurations" in shown and "small 0-3 > middle 3-" in shown and "large" in shown
    assert not list(Path().iterdir())


def test_list_of_anchors_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert here("list", "--anchors", "[test_vit,test_vit2]", "--num_classes", "7") == 0
    network = SNNet(["test_vit", "test_vit2"], num_classes=7)
    shown = capsys.readouterr().out
    assert f"{network.num_configurations} configurations" in shown
    assert "test_vit 0-0 > test_vit2 1-" in shown


def test_list_of_a_released_network_has_the_authors_accuracies(capsys: pytest.CaptureFixture[str]) -> None:
    assert here("list", "--released", "levit_192_256") == 0
    shown = capsys.readouterr().out
    assert "measured by the authors" in shown and "79.6" in shown and "81.2" in shown
    assert here("list", "--released", "levit_192_256", "--pareto") == 0
    pareto = capsys.readouterr().out
    front = pareto_front((stitch.id, stitch.flops, stitch.acc1) for stitch in released_stitches("levit_192_256"))
    assert f"{len(front)} configurations" in pareto and pareto.count("*") == len(front) < 8


def test_a_run_shows_its_accuracies(networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """list and select on the newest finished run, with what its evaluation found."""
    run = RunFolder.create(tmp_path / "runs", "snnet", "run")
    run.write_config({"data": {"root": "images"}})
    shutil.copytree(networks / "vit", run.path / "network")
    extra = {"data": "some images", "configurations": [{"id": i, "acc1": 90.0 - i} for i in range(9)]}
    Metrics("snnet", [0], 1.0, [], [], extra).write(run.path / "metrics.json")
    run.mark_finished()
    assert here("list") == 0
    shown = capsys.readouterr().out
    assert "accuracy: some images" in shown and shown.count("*") == 1  # id 0 is the cheapest and the best
    assert shown.splitlines()[-1].split()[-1] == "82"
    assert here("select") == 0
    assert capsys.readouterr().out.startswith("0  ")
