"""The cases of every paper, on a toy paper of two engines; and each notices a command that does otherwise."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from paperkit.command import engines
from paperkit.command.engines import Engine
from paperkit.files.runs import RunFolder
from paperkit.results.metrics import Metrics, Row
from paperkit.testing import verbs
from paperkit.testing.commands import Command
from paperkit.testing.verbs import CASES, World

ENGINES = {"digits": Engine("toy experiment", "toy_verbs.digits"), "images": Engine("toy images", "toy_verbs.images")}


def write(run: RunFolder, options: Any) -> None:
    Metrics("toy", list(range(options.seeds)), 0.1, [Row("net", "accuracy", [90.0])]).write(run.path / "metrics.json")


def engine(option: str, embedded: bool) -> ModuleType:
    """A module with an engine that trains nothing."""
    module: Any = ModuleType(f"toy_verbs.{option}")
    module.__doc__ = f"Trains {option}."

    def add_arguments(parser: Any) -> None:
        parser.add_argument("--seeds", type=int, default=1)
        parser.add_argument(f"--{option}", type=int, default=1)

    def check(options: Any, run: RunFolder | None) -> None:
        engines.refuse_changes(options, run)

    module.add_arguments = add_arguments
    module.train = lambda run, options, resuming: write(run, options)

    def evaluate(run: RunFolder, options: Any) -> None:
        print("evaluated")
        write(run, options)

    module.evaluate = evaluate
    if embedded:
        module.check = check
    return module


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The embedded engine of the toy paper."""
    package: Any = ModuleType("toy_verbs")
    package.__path__ = []
    package.main = lambda: sys.exit(engines.main("toy", "A toy paper.", ENGINES, {}, "toy_verbs.kinds"))
    digits = engine("digits", True)
    for name, module in (("", package), (".digits", digits), (".images", engine("images", False))):
        monkeypatch.setitem(sys.modules, f"toy_verbs{name}", module)
    return digits


@pytest.fixture
def world(toy: ModuleType, tmp_path: Path) -> World:
    command = Command("toy", "toy_verbs:main")
    return World(command, ENGINES, lambda path: path.write_text(yaml.safe_dump({"seeds": 2})), tmp_path)


# A child process cannot import modules made in this one: that case runs on the paper of test_add_a_paper.py.
@pytest.mark.parametrize(
    "case", sorted({*CASES} - {verbs.a_full_disk_is_one_line}, key=CASES.index), ids=lambda c: c.__name__
)
def test_cases_hold(case: Callable[[World], None], world: World) -> None:
    case(world)


def test_options_beside_resume_that_are_taken_without_a_word(world: World, toy: Any) -> None:
    del toy.check
    with pytest.raises(AssertionError):
        verbs.options_beside_resume(world)


def test_a_resume_that_looks_in_another_root(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found = engines._continued
    monkeypatch.setattr(engines, "_continued", lambda paper, root, resume: found(paper, "runs", resume))
    for case in (verbs.resume_looks_in_the_root, verbs.resume_takes_a_name):
        with pytest.raises(AssertionError):
            case(world)


def test_a_command_that_reads_only_the_first_config(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    in_order = engines._configs_first

    def first_alone(argv: list[str]) -> list[str]:
        words = in_order(argv)
        return words[:2] + words[2 * words.count("--config") :]

    monkeypatch.setattr(engines, "_configs_first", first_alone)
    with pytest.raises(AssertionError):
        verbs.later_configs_go_over_earlier(world)
