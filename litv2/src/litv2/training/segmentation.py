"""Train a segmentation network: a config file of mmsegmentation, run by mmengine's Runner.

Example: litv2 train litv2/configs/ade20k/semantic_fpn_litv2_s.py --cfg-options data_root=DIR
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paperkit.command.cli import make_parser
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder

KEPT = "segmentation.py"


def main(argv: Sequence[str], prog: str) -> int:
    """Parse, open the run folder, train."""
    from litv2.experiment.run_folders import open_run

    parser = make_parser(prog, __doc__)
    parser.add_argument("config_file", nargs="?", type=str | None, default=None, help="mmsegmentation config (.py)")
    parser.add_argument("--config", type=str | None, default=None, help="the same, as an option")
    parser.add_argument("--name", type=str | None, default=None, help="name of the run folder (default: the time)")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")
    parser.add_argument("--resume", nargs="?", const="newest", default=None, help="continue a run; alone: the newest")
    parser.add_argument("--amp", action="store_true", help="automatic mixed precision")
    parser.add_argument("--launcher", type=str, default="none", help="none, pytorch or slurm, as mmengine names them")
    parser.add_argument("--cfg-options", nargs="+", type=str, default=[], help="changes of the config: key=value ...")
    arguments = parser.parse_args(list(argv))
    path = arguments.config_file or arguments.config
    if path is None and arguments.resume is None:
        raise UserError("no config: litv2 train FILE.py")
    run = open_run(arguments.root, arguments.name, arguments.resume)
    with run.lock():
        if arguments.resume:
            path = str(run.path / KEPT)
        config = read_config(path, arguments.cfg_options, arguments.launcher, arguments.amp)
        if not arguments.resume:
            config.dump(str(run.path / KEPT))
            run.write_config({"engine": "mmengine", "config": KEPT})
            run.write_environment()
        print(f"run folder {run.path}", flush=True)
        train(config, run, resume=arguments.resume is not None)
        run.mark_finished()
    print(f"{run.path}: iter_*.pth and TensorBoard logs")
    return 0


def read_config(path: str, changes: Sequence[str], launcher: str = "none", amp: bool = False) -> Any:
    """The resolved config.

    Raises:
        UserError: no such file, not readable, or a change that is no key=value.
    """
    from mmengine.config import Config

    try:
        config = Config.fromfile(path)
    except FileNotFoundError:
        raise UserError(f"no config at {path}") from None
    except Exception as error:
        raise UserError(f"{path} is no mmengine config: {error}") from error
    changed = parse_changes(changes)
    config.merge_from_dict(changed)
    if "data_root" in changed:
        for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
            config[loader].dataset.data_root = changed["data_root"]
    config.launcher = launcher
    if launcher == "none" and config.model.decode_head.get("norm_cfg", {}).get("type") == "SyncBN":
        config.model.decode_head.norm_cfg.type = "BN"  # one process: the same statistics, and it runs on a CPU
    if amp:
        config.optim_wrapper.type = "AmpOptimWrapper"
    return config


def parse_changes(changes: Sequence[str]) -> dict[str, Any]:
    """``key=value`` words as mmengine's own tools read them: 1e-4, true, None, [1,2], "text".

    Raises:
        UserError: a word without its equals sign.
    """
    import argparse

    from mmengine.config import DictAction

    for change in changes:
        if "=" not in change:
            raise UserError(f"--cfg-options {change}: give key=value")
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="*", action=DictAction, default={})
    return parser.parse_args(["--cfg-options", *changes]).cfg_options


def train(config: Any, run: RunFolder, resume: bool) -> Any:
    """Run mmengine's loop in a run folder; a resumed one starts from the newest checkpoint that is whole."""
    from mmengine.runner import Runner

    from litv2.models.released import read_released
    from paperkit.files.weights import load_strict

    config.work_dir = str(run.path)
    if resume:
        found = newest_whole(run.path)
        config.load_from, config.resume = (str(found), True) if found else (None, False)
        if found:
            refuse_code(config.load_from)
    start, config.load_from = config.get("load_from"), config.get("load_from") if resume else None
    runner = Runner.from_cfg(config)
    if start and not resume:  # by our own strict loading: mmengine's only warns of keys that do not fit
        load_strict(getattr(runner.model, "module", runner.model), read_released(start), start)
    runner.train()
    return runner


def refuse_code(path: str) -> None:
    """mmengine opens a checkpoint that its safe reader refuses with the unsafe one; here such a file ends the command.

    Raises:
        UserError: a missing or damaged file, or a pickle that could run code.
    """
    from mmengine.runner.checkpoint import get_torch_safe_globals

    from paperkit.files.weights import read_checkpoint

    try:
        read_checkpoint(path, allow=get_torch_safe_globals())
    except UserError as error:
        raise UserError(str(error).split("; if you trust")[0]) from error  # this verb has no --trust-pickle


def newest_whole(folder: Path) -> Path | None:
    """The checkpoint of the highest iteration whose archive is undamaged."""
    files = sorted(folder.glob("iter_*.pth"), key=lambda path: int(path.stem.split("_")[1]), reverse=True)
    for path in files:
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is None:
                    return path
        except (OSError, zipfile.BadZipFile):
            continue
    return None
