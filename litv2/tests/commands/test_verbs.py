"""What every paper's `train` and `eval` must do, on a tiny run of the embedded experiment."""

from collections.abc import Callable

import pytest
import yaml
from made import LITV2

from litv2.cli import ENGINES
from paperkit.testing.verbs import CASES, World

TINY = dict(
    seeds=1, alphas=[0.0, 0.5], marker_steps=4, digit_steps=4, marker_test=64, timing_pairs=0, processes=1, batch_size=8
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(LITV2, ENGINES, lambda path: path.write_text(yaml.safe_dump(TINY)), tmp_path_factory.mktemp("verbs"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_verbs(case: Callable[[World], None], world: World) -> None:
    case(world)
