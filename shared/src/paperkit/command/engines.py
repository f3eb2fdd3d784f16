"""The verbs `train`, `eval`, `figures` and `verify`, which every paper has, over the paper's own engines.

An engine is one way to train: the embedded experiment, Lightning on images, mmengine. A paper's `cli.py` holds two
tables, its engines (the first is the embedded experiment, the default) and its own verbs, and calls `main`.

An engine is a module, imported when it is asked for:

    add_arguments(parser)              its options; --engine, --config, --name, --root and --resume are there already
    add_evaluation_arguments(parser)   further options of `eval` (may be left out)
    add_figure_arguments(parser)       further options of `figures` (may be left out)
    check(options, run)                refuses what cannot be trained, before there is a run folder (may be left out);
                                       `run` is the run that is continued, or None
    train(run, options, resuming)      works in the locked run folder, whose config.yaml and env.json are written
    evaluate(run, options)             `run` is None for weights that lie in no run folder
    figures(run, options)              draws, and returns the paths (may be left out)

Which engine: `--engine NAME`; else the key `engine` of a `--config` (the last file that has it), or its suffix; else
the run that is continued or evaluated; else the first. The settings of a run that is continued or evaluated hold, and
what the command line says goes over them.
"""

import argparse
import dataclasses
import importlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from paperkit.command import cli
from paperkit.command.cli import Verb, make_parser
from paperkit.errors import UserError
from paperkit.files.atomic import write_atomic
from paperkit.files.runs import RUN_VARIABLE, RunFolder, plain, process_rank, resolve_run
from paperkit.files.settings import read_settings
from paperkit.results.environment import environment

if TYPE_CHECKING:
    import torch

Settings = TypeVar("Settings")

NOT_OF_THE_RUN = ("config", "saved", "name", "root", "resume", "ckpt", "device", "trust_pickle", "output")
"""Options of a command that are no settings of the run itself."""


@dataclass(frozen=True)
class Engine:
    """One way to train.

    Args:
        help: its line in the help.
        module: the module that implements it.
        configs: suffix of its config files; ".py" for mmengine's, which are executed and therefore only read when the
            user names them.
    """

    help: str
    module: str
    configs: str = ".yaml"


def main(
    paper: str,
    description: str,
    engines: Mapping[str, Engine],
    verbs: Mapping[str, Verb],
    kinds: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Run one verb of `paper` and return the exit code (the console script passes it to `sys.exit`).

    Args:
        engines: by name; the first is the default.
        verbs: the paper's own verbs.
        kinds: module whose `KINDS` says how each kind of reference file is computed.
    """
    generic = {
        "train": Verb(
            f"train: {'; '.join(f'{n} ({e.help})' for n, e in engines.items())}", partial(train, paper, engines)
        ),
        "eval": Verb("evaluate a run or weights: table, metrics.json, figures", partial(evaluate, paper, engines)),
        "figures": Verb("draw the figures of a run again", partial(figures, paper, engines)),
    }
    closing = {"verify": Verb("recompute reference files and compare", partial(verify, kinds))}
    return cli.main(paper, description, {**generic, **verbs, **closing}, argv)


def train(paper: str, engines: Mapping[str, Engine], argv: list[str], prog: str) -> int:
    """`<paper> train`: a new run of an engine, or one that is continued."""
    seen = _peek(argv)
    run = None if seen.resume is None else _continued(paper, seen.root, seen.resume)
    name = _choose(engines, seen, run)
    module = importlib.import_module(engines[name].module)
    parser = make_parser(prog, _described(module, engines, name))
    _add_common(parser, engines[name], name)
    parser.add_argument("--name", type=str | None, default=None, help="name of the run folder (default: the time)")
    parser.add_argument(
        "--resume", nargs="?", const="newest", default=None, help="continue a run; alone: the newest unfinished one"
    )
    module.add_arguments(parser)
    given = parser.parse_args([*_saved(run, engines[name]), *_configs_first(argv)])
    options = parser.instantiate_classes(given)
    if hasattr(module, "check"):
        module.check(options, run)
    resuming = run is not None
    run = run or RunFolder.create(given.root, paper, given.name)
    with run.lock(), _named_for_children(run):
        if process_rank() == 0:
            run.write_config(_settings(parser, given))  # of a continued run too: what is given beside --resume counts
            write_atomic(run.path / "env.json", json.dumps(environment(), indent=2) + "\n")
            print(f"run folder {run.path}", flush=True)
        module.train(run, options, resuming)
        if process_rank() == 0:
            run.mark_finished()
    return 0


def evaluate(paper: str, engines: Mapping[str, Engine], argv: list[str], prog: str) -> int:
    """`<paper> eval`: the newest finished run, a run folder, or weights."""
    seen = _peek(argv)
    run = None if _asks_for_help(argv) else _evaluated(paper, seen)
    name = _choose(engines, seen, run)
    module = importlib.import_module(engines[name].module)
    parser = make_parser(prog, _described(module, engines, name))
    _add_common(parser, engines[name], name)
    parser.add_argument("--ckpt", type=str | None, default=None, help="run folder or weights (default: the newest run)")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--trust-pickle", action="store_true", help="read weights whose file may run code")
    parser.add_argument("--output", type=str | None, default=None, help="folder to write to (default: the run's)")
    module.add_arguments(parser)
    if hasattr(module, "add_evaluation_arguments"):
        module.add_evaluation_arguments(parser)
    options = parser.instantiate_classes(parser.parse_args([*_saved(run, engines[name]), *_configs_first(argv)]))
    if options.output is None:
        name = Path(options.ckpt or "weights").name.split(".")[0]
        options.output = str(run.path if run else Path(options.root) / paper / "eval" / name)
    module.evaluate(run, options)
    return 0


def figures(paper: str, engines: Mapping[str, Engine], argv: list[str], prog: str) -> int:
    """`<paper> figures RUN`."""
    seen = _peek(argv)
    first = argv[0] if argv and not argv[0].startswith("-") else None
    run = None if _asks_for_help(argv) else _found(first, seen.root, paper)
    name = _choose(engines, seen, run)
    module = importlib.import_module(engines[name].module)
    if not hasattr(module, "figures"):
        drawn = [
            other for other, engine in engines.items() if hasattr(importlib.import_module(engine.module), "figures")
        ]
        raise UserError(f"engine {name} draws no figures, its curves are in TensorBoard; {', '.join(drawn)} draws some")
    parser = make_parser(prog, _described(module, engines, name))
    parser.add_argument("run", nargs="?", type=str | None, default=None, help="run folder (default: the newest run)")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")
    parser.add_argument("--engine", type=str, default=name, help=f"whose figures: {', '.join(engines)}")
    parser.add_argument("--output", type=str | None, default=None, help="folder for the figures (default: RUN/figures)")
    if hasattr(module, "add_figure_arguments"):
        module.add_figure_arguments(parser)
    for path in module.figures(run, parser.instantiate_classes(parser.parse_args(argv))):
        print(path)
    return 0


def verify(kinds: str, argv: list[str], prog: str) -> int:
    """`<paper> verify FILE...`: recompute reference files through the code that users run, and compare every tensor."""
    parser = make_parser(prog, "Recompute reference files through the code that users run, and compare every tensor.")
    parser.add_argument("files", nargs="+", type=str, help="reference files, or folders of them")
    parser.add_argument("--rtol", type=float | None, default=None, help="relative tolerance instead of each kind's")
    given = parser.parse_args(argv)
    from paperkit.verification.verify import run

    return run(given.files, importlib.import_module(kinds).KINDS, given.rtol)


def refuse_changes(options: Any, run: RunFolder | None, free: Sequence[str] = ()) -> None:
    """For engines whose finished stages were trained with the settings of the run, which therefore stay as they are.

    Args:
        options: the options of the command.
        run: the run that is continued or evaluated; nothing is refused without one.
        free: options that may change.

    Raises:
        UserError: naming the first option that differs from the run's.
    """
    if run is None:
        return
    for name, was in run.read_config().items():
        asked = plain(getattr(options, name, was))
        if name not in free and asked != was:
            raise UserError(f"a run keeps its settings: {name} was {was}, is {asked}")


def refuse_below_one(config: Any, names: Sequence[str]) -> None:
    """For settings that count something.

    Raises:
        UserError: naming the first that is below 1.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise UserError(f"{name} {getattr(config, name)} is below 1")


def settings_of(options: Any, kind: type[Settings]) -> Settings:
    """The dataclass whose fields were declared as options by `parser.add_class_arguments(kind)`."""
    return kind(**{field.name: getattr(options, field.name) for field in dataclasses.fields(kind) if field.init})  # type: ignore[arg-type]


def device(name: str) -> "torch.device":
    """The device that an option names; `auto` is the first GPU, or the CPU where there is none.

    Raises:
        UserError: if there is no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"no device {name!r} here: {str(error).splitlines()[0]}") from error
    return found


class _Peek(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise argparse.ArgumentError(None, message)


def _peek(argv: Sequence[str]) -> argparse.Namespace:
    """The options that decide which parser reads the command line."""
    peek = _Peek(add_help=False, allow_abbrev=False)
    peek.add_argument("--engine")
    peek.add_argument("--config", action="append", default=[])
    peek.add_argument("--root", default="runs")
    peek.add_argument("--resume", nargs="?", const="newest")
    peek.add_argument("--ckpt")
    return peek.parse_known_args(argv)[0]


def _configs_first(argv: Sequence[str], option: str = "--config") -> list[str]:
    """The same words with the config files in front: an option counts more than a file, wherever it stands."""
    peek = _Peek(add_help=False, allow_abbrev=False)
    peek.add_argument(option, dest="files", action="append", default=[])
    found, rest = peek.parse_known_args(argv)
    return [*(word for file in found.files for word in (option, file)), *rest]


def _asks_for_help(argv: Sequence[str]) -> bool:
    return bool({"-h", "--help"} & set(argv))


def _continued(paper: str, root: str, resume: str) -> RunFolder:
    """The run that `--resume` names: a folder, a name, or `newest`."""
    if resume == "newest":
        for run in RunFolder.started(root, paper):
            if not run.finished and (run.path / "config.yaml").is_file():
                return run
            if not run.finished:
                print(f"passed over {run.path}: it was stopped before its settings were written", flush=True)
        raise UserError(f"no unfinished run in {Path(root) / paper}")
    run = RunFolder.open(resume if Path(resume).is_dir() else Path(root) / paper / resume)
    if run.finished:
        raise UserError(f"{run.path} is finished; `{paper} eval --ckpt {run.path}` shows it")
    return run


def _evaluated(paper: str, seen: argparse.Namespace) -> RunFolder | None:
    """The run of `--ckpt`; with an engine or a config named and no `--ckpt`, none: the engine says what it needs."""
    if seen.ckpt is None and (seen.engine or seen.config):
        return None
    return _found(seen.ckpt, seen.root, paper)


def _found(place: str | None, root: str, paper: str) -> RunFolder | None:
    """The run that a place lies in, or the newest; None for weights outside of runs, folders of weights among them."""
    if place is None or not Path(place).is_dir() or (Path(place) / "started").is_file():
        return resolve_run(place, root, paper)[0]
    around = [folder for folder in list(Path(place).absolute().parents)[:2] if (folder / "started").is_file()]
    if not around and not (Path(place) / "config.json").is_file():
        return resolve_run(place, root, paper)[0]  # which says that it is no run folder
    return RunFolder(around[0]) if around else None


def _choose(engines: Mapping[str, Engine], seen: argparse.Namespace, run: RunFolder | None) -> str:
    """The name of the engine.

    Raises:
        UserError: if it is unknown, a config cannot be read, or a run is of another engine.
    """
    name, source = None, ""
    for file in seen.config:
        found = _engine_of(engines, file)
        name, source = (found, file) if found is not None else (name, source)
    if seen.engine is not None:
        name, source = seen.engine, f"--engine {seen.engine}"
    own = None
    if run is not None:
        own = run.read_config().get("engine", next(iter(engines)))
        if name is not None and name != own:
            raise UserError(f"{run.path} is a run of engine {own}; {source} asks for {name}")
        source = str(run.path / "config.yaml")
    name = name if name is not None else own if own is not None else next(iter(engines))
    if not isinstance(name, str) or name not in engines:
        raise UserError(f"{source}: no engine {name!r}; there are {', '.join(engines)}")
    return name


def _engine_of(engines: Mapping[str, Engine], file: str) -> Any:
    """The engine that a config file names, by its suffix or its key `engine`; None if it names none."""
    for name, engine in engines.items():
        if engine.configs == ".py" == Path(file).suffix:
            if not Path(file).is_file():
                raise UserError(f"cannot read the config {file}: No such file or directory")
            return name
    return read_settings(file).get("engine")


def _described(module: ModuleType, engines: Mapping[str, Engine], name: str) -> str:
    width = max(map(len, engines))
    lines = [f"  {other:<{width}}  {engine.help}" for other, engine in engines.items()]
    title = f"engines (below are the options of {name}; --engine NAME --help shows another's):"
    return "\n".join([module.__doc__ or "", title, *lines])


def _add_common(parser: Any, engine: Engine, name: str) -> None:
    if engine.configs == ".py":
        parser.add_argument("--saved", action="config", help=argparse.SUPPRESS)  # a run's settings, see `_saved`
        parser.add_argument(
            "--config",
            action="append",
            type=str,
            default=[],
            help="Python config file, which is executed: name only files that you trust; several: later over earlier",
        )
    else:
        parser.add_argument("--config", action="config", help="YAML file of options; several: later over earlier")
    parser.add_argument("--engine", type=str, default=name, help="how to train (default: what config or run names)")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")


def _saved(run: RunFolder | None, engine: Engine) -> list[str]:
    """The words by which a run's settings come before the command line's."""
    option = "--saved" if engine.configs == ".py" else "--config"
    return [] if run is None else [option, str(run.path / "config.yaml")]


def _settings(parser: Any, given: Any) -> dict[str, Any]:
    """What config.yaml holds: the engine, then its settings."""
    content = json.loads(parser.dump(given, skip_none=False, format="json"))
    return {"engine": content.pop("engine"), **{k: plain(v) for k, v in content.items() if k not in NOT_OF_THE_RUN}}


@contextmanager
def _named_for_children(run: RunFolder) -> Iterator[None]:
    """Within the block, processes that a launcher starts by this same command join the run by the environment."""
    before = os.environ.get(RUN_VARIABLE)
    os.environ[RUN_VARIABLE] = str(run.path.absolute())
    try:
        yield
    finally:
        os.environ.pop(RUN_VARIABLE)
        if before is not None:
            os.environ[RUN_VARIABLE] = before
