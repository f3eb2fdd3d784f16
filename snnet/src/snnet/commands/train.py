"""`snnet train`: the embedded experiment, or a stitched network on real data when the config or an option names
data.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paperkit.command.cli import make_parser
from paperkit.command.run_options import RUN_OPTIONS, add_run_options, find_run, open_run
from paperkit.errors import UserError

REAL_DATA = ("--data", "--network", "--training", "--optim", "--trainer", "--teacher")  # --savings and --ema: both
HELP = """Without data: the embedded experiment on handwritten digits (anchors, stitched network, baselines).
With a config that has a `data` section, or options --data.*: a stitched network on real data
(`snnet train --config snnet/configs/imagenet/deit.yaml --data.root DIR`; all of its options: --help-all)."""


def main(argv: Sequence[str], prog: str) -> int:
    """Parse by what is asked for; the real-data parser imports Lightning and timm, the other one imports nothing
    heavy.
    """
    if "--help-all" in argv or is_real_data(argv):
        from snnet.training import train_images

        return train_images.main(["--help" if word == "--help-all" else word for word in argv], prog)
    parser = make_parser(prog, HELP)
    add_arguments(parser)
    return run(parser.parse_args(list(argv)))


def is_real_data(argv: Sequence[str]) -> bool:
    """Whether an option, or the config file, belongs to training on real data."""
    if any(word.split("=")[0].split(".")[0] in REAL_DATA for word in argv):
        return True
    for i, word in enumerate(argv):
        following = argv[i + 1] if i + 1 < len(argv) else ""
        if word == "--config" or word.startswith("--config="):
            if "data" in read_config(Path(word.partition("=")[2] or following)):
                return True
        elif word == "--resume":
            run = open_run(
                "runs", "snnet", None, following if following and not following.startswith("-") else "newest"
            )
            return "data" in run.read_config()
    return False


def read_config(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a config: it has no options at its top level")
    return content


def add_arguments(parser: Any) -> None:
    """Options of the embedded experiment."""
    from snnet.experiment.settings import ExperimentConfig

    add_run_options(parser)
    parser.add_class_arguments(ExperimentConfig)


def run(arguments: Any) -> int:
    """Train every seed, side by side, and write the result."""
    import time

    from paperkit.command.seeds import run_seeds
    from snnet.training.refusals import check_experiment

    asked = from_plain({k: v for k, v in arguments.as_dict().items() if k not in RUN_OPTIONS})
    check_experiment(asked)
    folder = find_run(arguments.root, "snnet", arguments.name, arguments.resume)
    start = time.monotonic()
    with folder.lock():
        if arguments.resume:
            config = from_plain(folder.read_config())
            check_unchanged(asked, config)
        else:
            config = asked
            folder.write_config(to_plain(config))
            folder.write_environment()
        print(f"run folder {folder.path}: {config.seeds} seeds of {config.total_steps:,} steps", flush=True)
        results = run_seeds(
            "snnet.experiment.run:run_seed",
            config.seed_list,
            {"run": str(folder.path), "config": config},
            config.total_steps,
            processes=config.processes or None,
            resume_with=f"snnet train --resume {folder.path}",
        )
        finish(folder, list(results.values()), config, "snnet train", time.monotonic() - start)
        folder.mark_finished()
    return 0


def check_unchanged(asked: Any, config: Any) -> None:
    """A resumed run keeps its settings: its finished stages were trained with them.

    Raises:
        UserError: for an option that was given and is not the run's.
    """
    from snnet.experiment.settings import ExperimentConfig

    default, given = to_plain(ExperimentConfig()), to_plain(asked)
    for name, was in to_plain(config).items():
        if given[name] not in (default[name], was):
            raise UserError(f"a resumed run keeps its settings: {name} was {was}, is {given[name]}")


def to_plain(config: Any) -> dict[str, Any]:
    from dataclasses import fields

    return {field.name: getattr(config, field.name) for field in fields(config) if field.init}


def from_plain(content: dict[str, Any]) -> Any:
    """The settings of a run folder; YAML has neither tuples nor dataclasses."""
    from paperkit.training.savings import EMA, Savings
    from snnet.experiment.settings import ExperimentConfig

    try:
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        savings, ema = Savings(**settings.pop("savings", {})), EMA(**settings.pop("ema", {}))
        return ExperimentConfig(**settings, savings=savings, ema=ema)
    except TypeError as error:
        raise UserError(f"this is not a run of the embedded experiment: {error}") from None


def finish(folder: Any, results: list[Any], config: Any, command: str, seconds: float) -> None:
    """Write metrics.json and the figures, and print the table."""
    from paperkit.results.report import print_metrics
    from snnet.experiment.summary import summarise
    from snnet.figures.stitches import draw

    metrics = summarise(results, config, command, seconds)
    metrics.write(folder.path / "metrics.json")
    figures = draw(metrics, folder.path / "figures")
    print_metrics(metrics, f"SN-Net on handwritten digits, {len(results)} seeds ({metrics.extra['split']} images)")
    print(f"{folder.path}: metrics.json, {', '.join(f'figures/{path.name}' for path in figures)}")
