"""What every paper's `train` and `eval` must do, on a tiny run of the embedded experiment."""

from collections.abc import Callable

import pytest
from made import ptq4dm, write_yaml

from paperkit.testing.verbs import CASES, World
from ptq4dm.cli import ENGINES

TINY = dict(seeds=1, draws=1, images=2, steps=8, batch_size=8, pairs=2, records=32, processes=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(ptq4dm, ENGINES, lambda path: write_yaml(path, TINY), tmp_path_factory.mktemp("verbs"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_verbs(case: Callable[[World], None], world: World) -> None:
    case(world)
