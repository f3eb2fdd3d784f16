"""What every paper's `train` and `eval` must do, on a tiny run of the embedded experiment."""

from collections.abc import Callable

import pytest
import yaml
from made import bivit

from bivit.cli import ENGINES
from bivit.experiment.settings import A32, CLB, student
from paperkit.testing.verbs import CASES, World

TINY = dict(seeds=1, teacher_epochs=1, student_epochs=2, batch_size=400, students=[student(CLB, A32)], processes=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(bivit, ENGINES, lambda path: path.write_text(yaml.safe_dump(TINY)), tmp_path_factory.mktemp("verbs"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_verbs(case: Callable[[World], None], world: World) -> None:
    case(world)
