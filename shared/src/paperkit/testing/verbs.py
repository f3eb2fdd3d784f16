"""What `train` and `eval` of every paper must do, whatever its engines are: cases that each suite runs.

    @pytest.fixture(scope="module")
    def world(tmp_path_factory):
        return World(litv2, ENGINES, write_tiny, tmp_path_factory.mktemp("verbs"))

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
    def test_verbs(case, world):
        case(world)

One tiny run is trained by the command; the cases continue and evaluate copies of it. Where a case asks only which
folder and which settings a command takes, the embedded engine's `train` is left out.
"""

import contextlib
import importlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from paperkit.command.engines import Engine
from paperkit.results.metrics import Metrics
from paperkit.testing.commands import Command


class World:
    """A paper's command, and what the cases need of its embedded engine.

    Args:
        command: of the paper.
        engines: its table; the first is the embedded experiment.
        write_config: writes a tiny config of the embedded experiment to a path; a run of it should take seconds.
        folder: an empty one.
        option: an option that shapes a run of the embedded experiment; values: two that it takes, neither of them
            what `write_config` writes.
    """

    def __init__(
        self,
        command: Command,
        engines: Mapping[str, Engine],
        write_config: Callable[[Path], object],
        folder: Path,
        option: str = "seeds",
        values: tuple[Any, Any] = (3, 4),
    ) -> None:
        self.command, self.engines, self.folder, self.option, self.values = command, engines, folder, option, values
        self.embedded, self.others = next(iter(engines)), list(engines)[1:]
        self.config = folder / "tiny.yaml"
        write_config(self.config)
        self._count = 0

    @cached_property
    def whole(self) -> Path:
        """The tiny run, trained to its end by the command."""
        run = self.folder / "runs" / self.command.paper / "whole"
        assert not run.exists(), "the tiny run could not be trained; the first case that needed it says why"
        self.command.here("train", "--config", self.config, "--name", "whole", cwd=self.folder)
        return run

    def place(self) -> Path:
        """A new empty folder."""
        self._count += 1
        folder = self.folder / str(self._count)
        folder.mkdir()
        return folder

    def unfinished(self, folder: Path, name: str, root: str = "runs") -> Path:
        """A copy of the tiny run that lacks its results and its mark of an end."""
        run = folder / root / self.command.paper / name
        left_out = shutil.ignore_patterns("finished", "metrics.json", "figures")
        return Path(shutil.copytree(self.whole, run, ignore=left_out))

    @contextlib.contextmanager
    def noted(self, function: str) -> Iterator[list[tuple[Any, ...]]]:
        """The embedded engine with a function of it that only notes what it was given, the run first."""
        calls: list[tuple[Any, ...]] = []
        module = importlib.import_module(self.engines[self.embedded].module)
        with mock.patch.object(module, function, lambda *given: calls.append(given)):
            yield calls

    def asked(self, value: Any) -> tuple[str, str]:
        """The option with a value, as words of a command line."""
        return f"--{self.option}", str(value)


def finished(run: Path) -> bool:
    """Whether a run came to its end, with results."""
    return (run / "finished").is_file() and (run / "metrics.json").is_file()


def train_writes_the_run(world: World) -> None:
    """Config with its engine, environment, results and the two marks."""
    run = world.whole
    assert finished(run) and (run / "started").is_file() and (run / "env.json").is_file()
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert next(iter(saved.items())) == ("engine", world.embedded)
    given = yaml.safe_load(world.config.read_text())
    assert {key: saved.get(key) for key in given} == given
    command = Metrics.read(run / "metrics.json").command
    assert command == f"{world.command.paper} train --config {world.config} --name whole"


def a_full_disk_is_one_line(world: World) -> None:
    """No file may grow to the weights' size: a write notices it as it notices a full disk."""
    folder = world.place()
    sizes = [path.stat().st_size for path in world.whole.rglob("*") if path.suffix in (".safetensors", ".ckpt", ".pth")]
    line = world.command.child("train", "--config", world.config, cwd=folder, limit=max(sizes) // 2, code=1).line
    assert "cannot write" in line and "File too large" in line
    assert not list(folder.rglob("*.tmp-*")) and not list(folder.rglob("finished"))


def resume_looks_in_the_root(world: World) -> None:
    """`train --root other --resume`: the newest unfinished run of that root, not of `runs`."""
    folder = world.place()
    run, decoy = world.unfinished(folder, "mine", "other"), world.unfinished(folder, "decoy")
    before = (run / "config.yaml").read_bytes()
    world.command.here("train", "--root", "other", "--resume", cwd=folder)
    assert finished(run) and not (decoy / "finished").exists()
    assert (run / "config.yaml").read_bytes() == before
    assert Metrics.read(run / "metrics.json").rows[0].arm == Metrics.read(world.whole / "metrics.json").rows[0].arm


def resume_takes_a_name(world: World) -> None:
    """`--resume NAME`, and `--root=other --resume NAME`, before or behind each other."""
    for root, words in (
        ("runs", ["--resume", "named"]),
        ("other", ["--root=other", "--resume", "named"]),
        ("other", ["--resume", "named", "--root", "other"]),
        ("other", ["--resume=named", "--root=other"]),
    ):
        folder = world.place()
        run = world.unfinished(folder, "named", root)
        world.unfinished(folder, "newer", root)
        world.unfinished(folder, "named", "decoys")
        with world.noted("train") as calls:
            world.command.here("train", *words, cwd=folder)
        assert [(folder / call[0].path, call[2]) for call in calls] == [(run, True)], words
        assert [path.parent for path in folder.rglob("finished")] == [run], words


def resume_takes_a_folder(world: World) -> None:
    """`--resume PATH`, wherever the run lies."""
    folder = world.place()
    run = world.unfinished(folder / "elsewhere", "kept")
    with world.noted("train") as calls:
        world.command.here("train", "--resume", run, cwd=folder)
    assert [call[0].path.resolve() for call in calls] == [run.resolve()]


def resume_without_a_run_is_one_line(world: World) -> None:
    """No unfinished run, no such name, a finished run."""
    folder = world.place()
    assert "no unfinished run" in world.command.refused("train", "--resume", cwd=folder)
    assert "nothing" in world.command.refused("train", "--resume", "nothing", cwd=folder)
    assert "finished" in world.command.refused("train", "--resume", world.whole, cwd=folder)
    assert not list(folder.iterdir())


def later_configs_go_over_earlier(world: World) -> None:
    """Two `--config` in both orders; an option of the command line goes over both, wherever it stands."""
    folder = world.place()
    first, second = folder / "first.yaml", folder / "second.yaml"
    for path, value in zip((first, second), world.values, strict=True):
        path.write_text(yaml.safe_dump({world.option: value}))
    files = {"tiny": world.config, "first": first, "second": second}
    cases: list[tuple[list[str | Path], Any]] = []
    for order, value in (
        (("tiny", "first", "second"), world.values[1]),
        (("tiny", "second", "first"), world.values[0]),
        (("first", "second", "tiny"), yaml.safe_load(world.config.read_text()).get(world.option)),
    ):
        words: list[str | Path] = [word for name in order for word in ("--config", files[name])]
        cases.append((words, value))
    over = [f"--{world.option}={world.values[0]}"]
    both: list[str | Path] = ["--config", world.config, "--config", second]
    cases += [([*over, *both], world.values[0]), ([*both, *over], world.values[0])]
    for number, (words, value) in enumerate(cases):
        with world.noted("train") as calls:
            world.command.here("train", *words, "--name", str(number), cwd=folder)
        saved = yaml.safe_load((folder / calls[0][0].path / "config.yaml").read_text())
        if value is not None:
            assert getattr(calls[0][1], world.option) == value and saved[world.option] == value, words


def options_beside_resume(world: World) -> None:
    """The run's own settings hold; one that is changed is refused by name before anything is written."""
    folder = world.place()
    run = world.unfinished(folder, "kept")
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    for words in (world.asked(world.values[0]), ("--config", str(folder / "other.yaml"))):
        (folder / "other.yaml").write_text(yaml.safe_dump({world.option: world.values[0]}))
        line = world.command.refused("train", "--resume", "kept", *words, cwd=folder)
        assert world.option in line and str(world.values[0]) in line
        assert {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()} == before
    saved = yaml.safe_load((run / "config.yaml").read_text())
    with world.noted("train") as calls:
        world.command.here("train", "--resume", "kept", *world.asked(saved[world.option]), cwd=folder)
    assert len(calls) == 1 and yaml.safe_load((run / "config.yaml").read_text()) == saved


def a_missing_config_is_one_line(world: World) -> None:
    """The same exit code and line for every engine, alone and behind a good file; no run folder is made."""
    folder = world.place()
    for engine in ((), *(("--engine", name) for name in world.engines)):
        suffix = world.engines[engine[1]].configs if engine else ".yaml"
        line = world.command.refused("train", *engine, "--config", f"nowhere{suffix}", cwd=folder)
        assert line.startswith(f"error: cannot read the config nowhere{suffix}: "), line
    line = world.command.refused("train", "--config", world.config, "--config", "nowhere.yaml", cwd=folder)
    assert line.startswith("error: cannot read the config nowhere.yaml: ")
    assert not list(folder.iterdir())


def each_engine_has_its_help(world: World) -> None:
    """`train --help` lists the engines; with `--engine NAME` it shows the options of that one."""
    shown = {}
    for name in world.engines:
        shown[name] = world.command.here("train", "--engine", name, "--help", cwd=world.folder).out
        assert all(other in shown[name] for other in world.engines)
        assert world.command.here("eval", "--engine", name, "--help", cwd=world.folder).out
    assert len(set(shown.values())) == len(world.engines)
    assert world.command.here("train", "--help", cwd=world.folder).out == shown[world.embedded]


def an_unknown_engine_is_one_line(world: World) -> None:
    """From the command line and from a config; those that there are stand in the line."""
    folder = world.place()
    (folder / "odd.yaml").write_text("engine: steam\n")
    for words in (("--engine", "steam"), ("--config", "odd.yaml")):
        line = world.command.refused("train", *words, cwd=folder)
        assert "steam" in line and all(name in line for name in world.engines), line
    assert [path.name for path in folder.iterdir()] == ["odd.yaml"]


def another_engine_on_resume_is_refused(world: World) -> None:
    """`--engine` or a config's `engine`, beside `--resume` and beside `eval --ckpt RUN`."""
    folder = world.place()
    run = world.unfinished(folder, "kept")
    for name in world.others or ["steam"]:
        (folder / "other.yaml").write_text(f"engine: {name}\n")
        for words in (("--engine", name), ("--config", "other.yaml")):
            for line in (
                world.command.refused("train", "--resume", "kept", *words, cwd=folder),
                world.command.refused("eval", "--ckpt", world.whole, *words, cwd=folder),
            ):
                assert world.embedded in line and name in line, line
    assert not (run / "finished").exists()


def eval_uses_the_runs_own_engine(world: World) -> None:
    """`eval --ckpt RUN` gives the rows of the training again; without `--ckpt` it takes the newest finished run."""
    folder = world.place()
    run = folder / "runs" / world.command.paper / "copy"
    shutil.copytree(world.whole, run)
    world.unfinished(folder, "newer")
    trained = Metrics.read(run / "metrics.json")
    (run / "metrics.json").write_text("{}")
    assert world.command.here("eval", "--ckpt", run, cwd=folder).out
    assert steady(Metrics.read(run / "metrics.json")) == steady(trained)
    for words in ((), ("--root=runs",), ("--root", "runs", "--engine", world.embedded, "--ckpt", str(run))):
        with world.noted("evaluate") as calls:
            world.command.here("eval", *words, cwd=folder)
        assert [(folder / call[0].path).resolve() for call in calls] == [run.resolve()], words
    assert "no finished run" in world.command.refused("eval", "--root", "nowhere", cwd=folder)


def steady(metrics: Metrics) -> list[Any]:
    """The rows of a result that are no times."""
    return [row for row in metrics.rows if row.unit not in ("s", "ms")]


CASES = (
    train_writes_the_run,
    a_full_disk_is_one_line,
    resume_looks_in_the_root,
    resume_takes_a_name,
    resume_takes_a_folder,
    resume_without_a_run_is_one_line,
    later_configs_go_over_earlier,
    options_beside_resume,
    a_missing_config_is_one_line,
    each_engine_has_its_help,
    an_unknown_engine_is_one_line,
    another_engine_on_resume_is_refused,
    eval_uses_the_runs_own_engine,
)
