"""Without data: the embedded experiment on handwritten digits. With a config that has `data`: tune a backbone on
real data.

Real data: `spt train --config spt/configs/vtab/cifar_lora.yaml --data.root DIR`; all of its options: `spt train
--real --help`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paperkit.command.cli import make_parser
from paperkit.command.run_options import RUN_OPTIONS, add_run_options, find_run
from paperkit.errors import UserError

if TYPE_CHECKING:
    from paperkit.files.runs import RunFolder
    from spt.experiment.settings import ExperimentConfig, SeedResult

REAL_DATA = ("--data", "--backbone", "--recipe", "--method", "--trainer", "--real")


def main(argv: Sequence[str], prog: str) -> None:
    """Parses by what is asked for; only real data imports Lightning and timm."""
    kind, words = kind_of_data(argv), [word for word in argv if word != "--real"]
    if kind == "ade20k":
        from spt.training import train_segmentation

        train_segmentation.main(words, prog)
    elif kind:
        from spt.training import train_real

        train_real.main(words, prog)
    else:
        parser = make_parser(prog, __doc__)
        add_arguments(parser)
        run(parser.parse_args(list(argv)))


def kind_of_data(argv: Sequence[str]) -> str:
    """``ade20k`` for segmentation, ``lists`` for the other real data, nothing for the embedded experiment.

    An option, the config file or the resumed run tells.
    """
    kind = ""
    for word, following in zip(argv, [*argv[1:], ""], strict=False):  # also for no word at all
        name, _, value = word.partition("=")
        if name == "--data.kind" and (value or following) == "ade20k":
            return "ade20k"
        if name.split(".")[0] in REAL_DATA:
            kind = "lists"
        file = Path(value or following)
        if name == "--resume":
            file = resumed_config(argv, value or following)
        if name in ("--config", "--resume") and file.is_file() and "data" in (content := read_yaml(file)):
            kind = "lists"
            if isinstance(content["data"], dict) and content["data"].get("kind") == "ade20k":
                return "ade20k"
    return kind


def resumed_config(argv: Sequence[str], run: str) -> Path:
    """Settings of the run that ``--resume`` names: a folder, a name, or the newest unfinished one."""
    from paperkit.files.runs import RunFolder

    words = [word for option in argv for word in option.split("=", 1)]
    root = words[words.index("--root") + 1] if "--root" in words[:-1] else "runs"
    if not run or run.startswith("-"):
        newest = RunFolder.newest(root, "spt", finished=False)
        return newest.path / "config.yaml" if newest else Path("nowhere")
    return (Path(run) if Path(run).is_dir() else Path(root) / "spt" / run) / "config.yaml"


def read_yaml(path: Path) -> dict[str, Any]:
    """The options in a YAML file.

    Raises:
        UserError: when it cannot be read or is no mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the config {path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"the config {path} is no mapping of options")
    return content


def add_arguments(parser: Any) -> None:
    """Options of the embedded experiment."""
    from spt.experiment.settings import ExperimentConfig

    add_run_options(parser)
    parser.add_class_arguments(ExperimentConfig)


def run(arguments: Any) -> None:
    """Pre-trains the backbone, then runs the seeds side by side."""
    from paperkit.command.seeds import run_seeds
    from spt.experiment.settings import ExperimentConfig

    config = ExperimentConfig(**{k: v for k, v in vars(arguments).items() if k not in RUN_OPTIONS})
    folder, start = find_run(arguments.root, "spt", arguments.name, arguments.resume), time.monotonic()
    with folder.lock():
        if arguments.resume:
            config = saved_config(folder)
        else:
            folder.write_config(vars(config))
            folder.write_environment()
        again = f"spt train --resume {folder.path}"
        print(
            f"{folder.path}: {config.seeds} seeds, {len(config.tasks)} tasks, {len(config.arm_list)} arms", flush=True
        )
        shared = {"run": str(folder.path), "config": config}
        print(f"pre-training the backbone, {config.pretrain_steps} steps", flush=True)
        backbone = run_seeds(
            "spt.experiment.run:pretrain", [config.backbone_seed], shared, config.pretrain_steps, resume_with=again
        )[config.backbone_seed]
        results = run_seeds(
            "spt.experiment.run:run_seed",
            config.seed_list,
            shared,
            config.steps_per_seed,
            processes=config.processes or None,
            resume_with=again,
        )
        report(folder, list(results.values()), config, "spt train", time.monotonic() - start, backbone)
        folder.mark_finished()


def saved_config(folder: RunFolder) -> ExperimentConfig:
    """The settings that a run was started with.

    Raises:
        UserError: when the run is of another kind.
    """
    from spt.experiment.settings import ExperimentConfig

    options: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in folder.read_config().items()}
    try:
        return ExperimentConfig(**options)
    except TypeError as error:
        raise UserError(f"{folder.path} is not a run of the embedded experiment: {error}") from error


def report(
    folder: RunFolder,
    results: list[SeedResult],
    config: ExperimentConfig,
    command: str,
    seconds: float,
    backbone: float,
) -> None:
    """Table on the screen, metrics.json, figures."""
    from paperkit.results.report import print_metrics
    from spt.experiment.figures import draw
    from spt.experiment.summary import summarise

    metrics = summarise(results, config, command, seconds, backbone)
    metrics.write(folder.path / "metrics.json")
    drawn = draw(metrics, folder.path / "figures")
    print_metrics(
        metrics, f"SPT on four tasks of handwritten digits, {len(results)} seeds, on {metrics.extra['evaluated_on']}"
    )
    print(f"note: {metrics.extra['counting']}")
    print(
        f"written: {folder.path / 'metrics.json'}, {len(drawn)} figures in {folder.path / 'figures'} ({seconds:.0f} s)"
    )
