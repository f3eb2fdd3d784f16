"""Train a segmentation network: a config of mmsegmentation (.py), run by mmengine's Runner.

Example: litv2 train --config litv2/configs/ade20k/semantic_fpn_litv2_s.py --cfg-options data_root=DIR
A config file is executed, so name only files that you trust. The run keeps the resolved config as data.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paperkit.errors import UserError
from paperkit.files.runs import RunFolder, process_rank

KEPT = "segmentation.json"


def add_arguments(parser: Any) -> None:
    """Every option of a run."""
    parser.add_argument("--amp", action="store_true", help="automatic mixed precision")
    parser.add_argument("--launcher", type=str, default="none", help="none, pytorch or slurm, as mmengine names them")
    parser.add_argument("--cfg-options", nargs="+", type=str, default=[], help="changes of the config: key=value ...")


def check(options: Any, run: RunFolder | None) -> None:
    """Read the config before there is a run folder.

    Raises:
        UserError: no config, or one that cannot be read.
    """
    resolved(options, run)


def resolved(options: Any, run: RunFolder | None) -> Any:
    """The config of the files that are named, later over earlier, else the run's own; with the options' changes.

    Raises:
        UserError: no such file, not readable, a change that is no key=value, or a run's config that would run code.
    """
    import litv2.models.segmenter  # noqa: F401  (registers)
    from litv2.training.openmmlab import read_config, read_data, refuse_paths_to_code

    if options.config:
        config, *overlays = [read_config(path) for path in options.config]
        for overlay in overlays:
            config.merge_from_dict(overlay.to_dict())
    elif run is not None:
        config = read_data(run.path / KEPT)
    else:
        raise UserError("no config: name a Python file of mmsegmentation with --config")
    changed(config, options.cfg_options, options.launcher, options.amp)
    if not options.config:
        refuse_paths_to_code(config.to_dict(), str(run.path / KEPT) if run else "the options")
    return config


def changed(config: Any, changes: Sequence[str], launcher: str = "none", amp: bool = False) -> Any:
    """The config with the command line's changes, in place; one process takes BatchNorm for SyncBN."""
    from litv2.training.openmmlab import parse_changes

    found = parse_changes(changes)
    config.merge_from_dict(found)
    if "data_root" in found:
        for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
            config[loader].dataset.data_root = found["data_root"]
    config.launcher = launcher
    if launcher == "none" and config.model.decode_head.get("norm_cfg", {}).get("type") == "SyncBN":
        config.model.decode_head.norm_cfg.type = "BN"  # one process: the same statistics, and it runs on a CPU
    if amp:
        config.optim_wrapper.type = "AmpOptimWrapper"
    return config


def train(run: RunFolder, options: Any, resuming: bool) -> None:
    """Run mmengine's loop; a resumed one starts from the newest checkpoint that is whole."""
    from litv2.training.openmmlab import write_data

    config = resolved(options, run if resuming else None)
    if process_rank() == 0:
        write_data(config, run.path / KEPT)
    run_loop(config, run, resuming)
    print(f"{run.path}: iter_*.pth and TensorBoard logs")


def run_loop(config: Any, run: RunFolder, resuming: bool) -> Any:
    """mmengine's Runner on a config, in a run folder, to its end."""
    from mmengine.runner import Runner

    from litv2.models.released import read_released
    from litv2.training.openmmlab import EvaluateMissed, newest_whole, refuse_code
    from paperkit.files.weights import load_strict

    config.work_dir = str(run.path)
    start, config.load_from, config.resume = config.get("load_from"), None, False
    if resuming:
        found = newest_whole(run.path)
        if found:
            refuse_code(str(found))
            config.load_from, config.resume = str(found), True
    if config.get("visualizer"):  # mmengine has one of each name a process: a second run would log into the first's
        config.visualizer["name"] = f"visualizer of {run.path.absolute()}"
    runner = Runner.from_cfg(config)
    if resuming:
        runner.register_hook(EvaluateMissed())
    if start and not resuming:  # by our own strict loading: mmengine's only warns of keys that do not fit
        load_strict(getattr(runner.model, "module", runner.model), read_released(start), start)
    runner.train()
    return runner


def evaluate(run: RunFolder | None, options: Any) -> None:
    """mIoU of a run's newest checkpoint, or of --ckpt FILE, by mmengine's own test loop."""
    from mmengine.runner import Runner

    from litv2.training.openmmlab import newest_whole, refuse_code
    from litv2.training.results import report

    file = options.ckpt is not None and Path(options.ckpt).is_file()
    checkpoint = Path(options.ckpt) if file else newest_whole(run.path) if run is not None else None
    if checkpoint is None:
        raise UserError(f"{run.path} has no whole iter_*.pth" if run else "no weights: name a checkpoint with --ckpt")
    refuse_code(str(checkpoint))
    config, start = resolved(options, run), time.monotonic()
    config.work_dir, config.load_from, config.resume = options.output, str(checkpoint), False
    config.model.backbone.pretrained = None
    found = Runner.from_cfg(config).test()
    found = {name: float(value) for name, value in found.items()}
    report(Path(options.output), "last", str(checkpoint), found, config.get("seed", 0), time.monotonic() - start)
