"""What every paper's `train` and `eval` must do, on a tiny run of the embedded experiment."""

from collections.abc import Callable

import pytest
from made import TINY, focusformer, write_yaml

from focusformer.cli import ENGINES
from paperkit.testing.verbs import CASES, World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    tiny = {**TINY, "steps": 20, "alone": 0}
    return World(focusformer, ENGINES, lambda path: write_yaml(path, tiny), tmp_path_factory.mktemp("verbs"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_verbs(case: Callable[[World], None], world: World) -> None:
    case(world)
