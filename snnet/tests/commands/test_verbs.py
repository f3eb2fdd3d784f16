"""`train` and `eval` as every paper has them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from made import SNNET

from paperkit.testing.verbs import CASES, World
from snnet.cli import ENGINES

TINY = {
    "seeds": 1,
    "anchor_epochs": 1,
    "joint_epochs": 1,
    "measured_epochs": [1],
    "scratch_every": 0,
    "batch_size": 128,
}


def write_tiny(path: Path) -> None:
    path.write_text(yaml.safe_dump(TINY))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(SNNET, ENGINES, write_tiny, tmp_path_factory.mktemp("verbs"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_verbs(case: Callable[[World], None], world: World) -> None:
    case(world)
