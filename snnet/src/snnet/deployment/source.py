"""Where a command's network comes from: a run, a saved folder, a released SN-Net, or a list of anchors."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paperkit.errors import UserError
from paperkit.files.runs import RunFolder
from paperkit.files.weights import load_strict, read_weights
from paperkit.results.metrics import Metrics
from snnet.experiment.settings import METHOD, ExperimentConfig, check_experiment, from_plain
from snnet.method.budget import OperatingPoint, operating_points, read_latencies
from snnet.models.anchors import SNNet, input_size_of, load_folder, read_anchors
from snnet.models.released_networks import read_released, released_stitches


@dataclass(frozen=True)
class Source:
    """A network with what is known of it.

    Attributes:
        network: in eval mode.
        description: arguments of `SNNet` that build it.
        input_size: (channels, H, W).
        accuracies: by id, in percent; empty if none are known.
        accuracy_of: what the accuracies were measured on.
        folder: where results and latencies of this network are kept; None for one that is not saved.
    """

    network: SNNet
    description: dict[str, Any]
    input_size: tuple[int, int, int]
    accuracies: dict[int, float]
    accuracy_of: str
    folder: Path | None

    def points(self) -> list[OperatingPoint]:
        """Costs and, where known, accuracies and latencies of every configuration."""
        return operating_points(
            self.network, self.input_size, self.network.anchor_names, self.accuracies, read_latencies(self.folder)
        )


def open_source(arguments: Any) -> Source:
    """The network that the options name; the newest finished run if they name none.

    Raises:
        UserError: if there is none, or the weights do not fit.
    """
    if arguments.released:
        return _released(arguments.released, arguments.ckpt, arguments.trust_pickle, arguments.part)
    if arguments.anchors is not None:
        found = read_anchors(
            arguments.anchors, arguments.num_classes, arguments.ckpt, arguments.trust_pickle, arguments.part
        )
        return _source(*found, None)
    if arguments.ckpt is None:
        run = RunFolder.newest(arguments.root, "snnet", finished=True)
        return _experiment(ExperimentConfig(), None, None) if run is None else _run(run, arguments.seed)
    path = Path(arguments.ckpt)
    if (path / "started").is_file():
        return _run(RunFolder.open(path), arguments.seed)
    if (path / "config.json").is_file():
        return _saved(path)
    if path.is_file():
        raise UserError(f"{path} is a weight file; say of which network with --released NAME or --anchors [NAME,...]")
    raise UserError(f"no network at {path}: neither a run folder nor a folder with config.json and model.safetensors")


def _run(run: RunFolder, seed: int | None) -> Source:
    config = run.read_config()
    if "data" not in config:
        return _experiment(from_plain(config), run.path, seed)
    source = _saved(run.path / "network")
    metrics = run.path / "metrics.json"
    if not metrics.exists():
        return replace(source, folder=run.path)
    extra = Metrics.read(metrics).extra
    accuracies = {c["id"]: c["acc1"] for c in extra.get("configurations", []) if "acc1" in c}
    return replace(source, folder=run.path, accuracies=accuracies, accuracy_of=extra.get("data", ""))


def _experiment(config: ExperimentConfig, folder: Path | None, seed: int | None) -> Source:
    """A network of the embedded experiment: trained if there is a folder."""
    check_experiment(config)
    description: dict[str, Any] = {"anchors": config.anchors(), "num_classes": 10, "in_chans": 1}
    network = SNNet(**description)
    accuracies: dict[int, float] = {}
    network.anchor_names = list(config.anchor_names)
    if folder is not None:
        seed = config.first_seed if seed is None else seed
        if seed not in config.seed_list:
            raise UserError(f"{folder} has no seed {seed}; it has {', '.join(map(str, config.seed_list))}")
        path = folder / f"seed-{seed}" / METHOD / "weights.safetensors"
        load_strict(network, read_weights(path, advice=None), str(path))
        if (folder / "metrics.json").exists():
            arms = Metrics.read(folder / "metrics.json").extra["arms"][config.seed_list.index(seed)]
            accuracies = {int(i): value for i, value in arms[METHOD].items()}
    return Source(network.eval(), description, (1, 8, 8), accuracies, f"digits, seed {seed}", folder)


def _saved(folder: Path) -> Source:
    return _source(*load_folder(folder), folder)


def _source(network: SNNet, description: dict[str, Any], folder: Path | None) -> Source:
    return Source(network.eval(), description, input_size_of(network), {}, "", folder)


def _released(name: str, ckpt: str | None, trust_pickle: bool, part: str | None) -> Source:
    network, description = read_released(name, ckpt, trust_pickle, part)
    accuracies = {stitch.id: stitch.acc1 for stitch in released_stitches(name)}
    where = "ImageNet-1k, measured by the authors"
    return Source(network.eval(), description, input_size_of(network), accuracies, where, None)
