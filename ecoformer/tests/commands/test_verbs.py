"""What every paper's `train` and `eval` must do, on a tiny run of the embedded experiment."""

from collections.abc import Callable

import pytest
import yaml
from made import ecoformer

from ecoformer.cli import ENGINES
from ecoformer.experiment.settings import ECO, SHARED
from paperkit.testing.verbs import CASES, World

TINY = dict(
    seeds=1, digit_arms=[SHARED, ECO], majority_arms=[ECO], majority_steps=4, digit_epochs=1, majority_test=64,
    batch_size=400, fit_images=2, test_images=2, fit_iterations=2, sweep=False, processes=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(
        ecoformer, ENGINES, lambda path: path.write_text(yaml.safe_dump(TINY)), tmp_path_factory.mktemp("verbs")
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_verbs(case: Callable[[World], None], world: World) -> None:
    case(world)
