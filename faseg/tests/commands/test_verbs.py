"""What every paper's `train` and `eval` must do, on a tiny run of the embedded experiment."""

from collections.abc import Callable

import pytest
import yaml
from made import faseg

from faseg.cli import ENGINES
from paperkit.testing.verbs import CASES, World

TINY = dict(seeds=1, steps=8, train_scenes=16, test_scenes=8, batch_size=2, width=8, queries=4, processes=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(faseg, ENGINES, lambda path: path.write_text(yaml.safe_dump(TINY)), tmp_path_factory.mktemp("verbs"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_verbs(case: Callable[[World], None], world: World) -> None:
    case(world)
