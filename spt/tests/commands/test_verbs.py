"""What `train` and `eval` of every paper must do, on SPT's engines."""

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import yaml
from made import small_lists, spt

from paperkit.testing.verbs import CASES, World
from spt.cli import ENGINES


def tiny(path: Path) -> None:
    """A run of seconds."""
    arms = ["sensitive entries", "linear probe"]
    settings = {"seeds": 1, "tasks": ["flip"], "arms": arms, "steps": 4, "pretrain_steps": 8}
    path.write_text(yaml.safe_dump(settings))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(spt, ENGINES, tiny, tmp_path_factory.mktemp("verbs"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_verbs(case: Callable[[World], None], world: World) -> None:
    case(world)


def test_sweep_is_an_engine_whatever_the_configs_say(world: World) -> None:
    """`spt sweep`, and `--resume` of it with and without changed options."""
    folder = world.place()
    (folder / "lists.yaml").write_text("engine: lists\ndata:\n  name: svhn\n")
    words = [*small_lists(folder)[2:], "--config", folder / "lists.yaml", "--tasks", "[svhn,eurosat]"]
    calls = []
    with mock.patch("spt.training.sweep.train", lambda *given: calls.append(given)):
        spt.here("sweep", "--name", "s", *words, cwd=folder)
        run = folder / "runs" / "spt" / "s"
        (run / "finished").unlink()
        saved = yaml.safe_load((run / "config.yaml").read_text())
        assert saved["engine"] == "sweep" and saved["tasks"] == ["svhn", "eurosat"]
        spt.here("sweep", "--resume", "--data.root", "elsewhere", cwd=folder)
    assert [call[2] for call in calls] == [False, True]
    saved["data"]["root"] = "elsewhere"
    assert yaml.safe_load((run / "config.yaml").read_text()) == saved
    assert "a sweep is many runs" in spt.refused("eval", "--ckpt", run, cwd=folder)
