"""Evaluate every configuration of a run: the newest finished one, a run folder, or (with --data.root) any weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paperkit.command.cli import make_parser
from paperkit.errors import UserError


def main(argv: Sequence[str], prog: str) -> int:
    parser = make_parser(prog, __doc__)
    add_arguments(parser)
    return run(parser.parse_args(list(argv)))


def add_arguments(parser: Any) -> None:
    from snnet.commands import network_options

    network_options.add_arguments(parser)
    parser.add_argument("--config", type=str | None, default=None, help="take the data section of this YAML file")
    parser.add_argument("--data.root", type=str | None, default=None, help="folder of the images, instead of the run's")
    parser.add_argument("--data.eval_batch_size", type=int | None, default=None, help="images per step")
    parser.add_argument("--data.num_workers", type=int | None, default=None, help="processes that decode")
    parser.add_argument("--ids", type=list[int] | None, default=None, help="only these configurations: [0,1,24]")
    parser.add_argument("--best", action="store_true", help="the run's best weights instead of its last")
    parser.add_argument(
        "--recalibrate",
        type=int,
        default=0,
        help="estimate BatchNorm statistics for each configuration on this many training batches (an extension)",
    )
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda")


def run(arguments: Any) -> int:
    from paperkit.files.runs import resolve_run

    saved = arguments.ckpt is not None and (Path(arguments.ckpt) / "config.json").is_file()
    if not (saved or arguments.released or arguments.anchors or arguments.config):
        folder, file = resolve_run(arguments.ckpt, arguments.root, "snnet")
        if folder is not None and file is None:
            config = folder.read_config()
            if "data" not in config:
                return evaluate_experiment(folder, config)
            weights = folder.path / ("best" if arguments.best else "network")
            if not weights.exists():
                raise UserError(f"{folder.path} has no {weights.name}/: the run did not get that far")
            return evaluate_real(arguments, config["data"], str(weights), folder.path)
    data: dict[str, Any] = {}
    if arguments.config:
        from snnet.commands.train import read_config

        data = read_config(Path(arguments.config)).get("data", {})
    target = Path(arguments.root) / "snnet-eval" / (arguments.released or Path(str(arguments.ckpt)).stem)
    return evaluate_real(arguments, data, arguments.ckpt, target)


def evaluate_experiment(folder: Any, config: dict[str, Any]) -> int:
    """All arms of the embedded experiment, from their weights."""
    import time

    from snnet.commands.train import finish, from_plain
    from snnet.experiment.run import measure_seed

    start, settings = time.monotonic(), from_plain(config)
    results = [measure_seed(seed, folder.path, settings) for seed in settings.seed_list]
    finish(folder, results, settings, "snnet eval", time.monotonic() - start)
    return 0


def evaluate_real(arguments: Any, data_options: dict[str, Any], weights: str | None, target: Path) -> int:
    """Every configuration on real images; results, metrics.json and figures go to `target`."""
    import time

    from paperkit.data.images import ImageData
    from paperkit.results.report import table
    from snnet.deployment.source import open_source
    from snnet.figures.stitches import draw
    from snnet.training.image_evaluation import evaluate_images, summarise_images

    if weights is None and not arguments.released and not arguments.anchors:
        raise UserError("name the weights with --ckpt")
    arguments.ckpt = weights
    source = open_source(arguments)
    source.network.to(arguments.device)
    given = {name: value for name, value in vars(arguments.data).items() if value is not None}
    options: dict[str, Any] = {**data_options, **given}
    if "root" not in options:
        raise UserError("no data to evaluate on: give --data.root, or --config with a data section")
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
    data = ImageData(**options)
    every = range(source.network.num_configurations)
    ids = [source.network.check_id(i) for i in (every if arguments.ids is None else arguments.ids)]
    start = time.monotonic()
    recalibrated = recalibrate_on(source.network, data, ids, arguments.recalibrate)
    kind = "_best" if arguments.best else ""  # apart: metrics.json is what is known of the last weights
    lines = target / f"stitches{kind}.jsonl"
    subject = fingerprint(source.network) + recalibrated
    results = evaluate_images(source, data, ids, lines, subject)
    metrics = summarise_images(source, results, data, 0, time.monotonic() - start)
    metrics.write(target / f"metrics{kind}.json")
    figures = draw(metrics, target / f"figures{kind}")
    table(
        [
            (c["id"], c["name"], c["macs"] / 1e9, c["params"] / 1e6, c["acc1"], "*" if c["pareto"] else "")
            for c in metrics.extra["configurations"]
        ],
        ("id", "configuration", "GMAC", "params [M]", "top-1 [%]", "Pareto"),
        metrics.extra["data"],
    )
    drawn = ", ".join(f"{path.parent.name}/{path.name}" for path in figures)
    print(f"{target}: metrics{kind}.json, {lines.name}, {drawn}")
    return 0


def recalibrate_on(network: Any, data: Any, ids: list[int], batches: int) -> str:
    """Give each configuration BatchNorm statistics of its own, if asked to; returns how to name the result."""
    from itertools import islice

    from snnet.method.bn_recalibration import recalibrate

    if not batches:
        return ""
    data.setup()
    network.statistics = recalibrate(network, [images for images, _ in islice(data.train_dataloader(), batches)], ids)
    return f", BatchNorm recalibrated on {batches} batches"


def fingerprint(network: Any) -> str:
    """A short hash of all weights: results are continued for the same weights alone."""
    import hashlib

    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).double().numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()[:16]
