"""What every paper's `train` and `eval` must do, on a tiny run of the embedded experiment."""

from collections.abc import Callable

import pytest
import yaml
from made import stpt

from paperkit.testing.verbs import CASES, World
from stpt.cli import ENGINES

TINY = dict(seeds=1, steps=2, batch_size=2, test_clips=2, channels=16, processes=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(stpt, ENGINES, lambda path: path.write_text(yaml.safe_dump(TINY)), tmp_path_factory.mktemp("verbs"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_verbs(case: Callable[[World], None], world: World) -> None:
    case(world)
