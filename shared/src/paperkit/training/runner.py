"""An engine around mmengine's Runner: a Python config, whole checkpoints, and a run folder that keeps data only.

A paper's engine module names its own parts and hands the functions on:

    ENGINE = RunnerEngine("litv2", "segmentation.json", ("litv2.models.segmenter",), scopes=("mmseg", "mmengine"))
    add_arguments, check, train, evaluate = ENGINE.add_arguments, ENGINE.check, ENGINE.train, ENGINE.evaluate
    add_evaluation_arguments = ENGINE.add_evaluation_arguments

A config file is executed, so name only files that you trust. Importing this module is cheap: torch and mmengine are
imported by what needs them, so that `--help` answers at once.
"""

import contextlib
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paperkit.errors import UserError
from paperkit.files.runs import RunFolder, process_rank

if TYPE_CHECKING:
    from torch import Tensor

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


@dataclass(frozen=True)
class RunnerEngine:
    """What differs between papers.

    Attributes:
        paper: its name.
        kept: file of a run folder that holds the resolved config.
        registers: modules that are imported before a config is read, since its run names what they register.
        scopes: whose registries a run folder's config may name (`paperkit.training.openmmlab.own_scope` makes one).
        metric: by which a config's `CheckpointHook(save_best=..., rule=...)` chooses the best checkpoint; that of a
            config which names another counts.
        read_start: reads the weights of a config's `load_from` and of an evaluation's checkpoint; None for files of
            mmengine and of paperkit.
        adapt: a paper's own changes of the config, by the options of its command (config, options).
        bfloat16: `--amp` is bfloat16 on a GPU too.
    """

    paper: str
    kept: str
    registers: tuple[str, ...]
    scopes: tuple[str, ...] = ("mmengine",)
    metric: str = "mIoU"
    read_start: "Callable[[str], Mapping[str, Tensor]] | None" = None
    adapt: Callable[[Any, Any], None] | None = None
    bfloat16: bool = False

    def add_arguments(self, parser: Any) -> None:
        """Every option of a run."""
        half = "bfloat16" if self.bfloat16 else "float16, on a CPU bfloat16"
        parser.add_argument("--amp", action="store_true", help=f"automatic mixed precision: {half}")
        parser.add_argument("--launcher", type=str, default="none", help="none, pytorch, slurm, as mmengine names them")
        parser.add_argument("--cfg-options", nargs="+", type=str, default=[], help="changes of the config: key=value")

    def add_evaluation_arguments(self, parser: Any) -> None:
        """What an evaluation may choose besides."""
        parser.add_argument("--best", action="store_true", help=f"the checkpoint of best {self.metric}, not the last")

    def check(self, options: Any, run: RunFolder | None) -> None:
        """Read the config before there is a run folder.

        Raises:
            UserError: no config, or one that cannot be read.
        """
        self.resolved(options, run)

    def resolved(self, options: Any, run: RunFolder | None) -> Any:
        """The config of the files that are named, later over earlier, else the run's own; with the options' changes.

        Raises:
            UserError: no such file, not readable, a change that is no key=value, or a run's config that would run code.
        """
        from paperkit.training.openmmlab import read_config, read_data, refuse_paths_to_code

        with contextlib.redirect_stdout(None):  # mmsegmentation prints what it found no use for
            for module in self.registers:
                importlib.import_module(module)
        if options.config:
            config, *overlays = [read_config(path) for path in options.config]
            for overlay in overlays:
                config.merge_from_dict(overlay.to_dict())
        elif run is not None:
            config = read_data(run.path / self.kept)
        else:
            raise UserError("no config: name a Python file of mmengine with --config")
        changed(config, options.cfg_options, options.launcher, options.amp)
        if options.amp and self.bfloat16:
            config.optim_wrapper.type = "Bfloat16OptimWrapper"
        if self.adapt is not None:
            self.adapt(config, options)
        if not options.config:
            source = str(run.path / self.kept) if run else "the options"
            refuse_paths_to_code(config.to_dict(), source, self.scopes)
        return config

    def train(self, run: RunFolder, options: Any, resuming: bool) -> None:
        """Run mmengine's loop; a resumed one starts from the newest checkpoint that is whole."""
        from paperkit.training.openmmlab import write_data

        config = self.resolved(options, run if resuming else None)
        if process_rank() == 0:
            write_data(config, run.path / self.kept)
        self.run_loop(config, run, resuming)
        _part()
        if process_rank() == 0:
            print(f"{run.path}: checkpoints (*.pth) and TensorBoard logs")

    def run_loop(self, config: Any, run: RunFolder, resuming: bool) -> Any:
        """mmengine's Runner on a config, in a run folder, to its end; returns it."""
        from paperkit.training.openmmlab import EvaluateMissed, newest_whole, refuse_code

        config.work_dir = str(run.path)
        start, config.load_from, config.resume = config.get("load_from"), None, False
        found = newest_whole(run.path) if resuming else None
        if found:
            refuse_code(str(found))
            _start_fresh(config)
            config.load_from, config.resume, start = str(found), True, None
        if config.get("visualizer"):  # mmengine has one of each name a process: a second run would log into the first's
            config.visualizer["name"] = f"visualizer of {run.path.absolute()}"
        runner = _made(config)
        if resuming:
            runner.register_hook(EvaluateMissed())
        if start:
            self._load(runner.model, start)
        runner.train()
        return runner

    def _load(self, model: Any, path: str) -> None:
        """Weights by our own strict loading: mmengine's only warns of keys that do not fit."""
        from mmengine.model import BaseTTAModel, is_model_wrapper
        from mmengine.runner.checkpoint import get_torch_safe_globals

        from paperkit.files.weights import load_strict, read_weights

        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        state = self.read_start(path) if self.read_start else read_weights(path, allow=get_torch_safe_globals())
        load_strict(model, state, path)

    def evaluate(self, run: RunFolder | None, options: Any, remark: str = "") -> Any:
        """The metrics of a run's newest or best checkpoint, or of --ckpt FILE, by mmengine's own test loop.

        Args:
            remark: what tells these figures from others of the same checkpoint, behind its name in metrics.json.

        Returns:
            The config that was tested.

        Raises:
            UserError: no such checkpoint, one that could run code, or one that does not fit the config's network.
        """
        from paperkit.results.record import record, told
        from paperkit.training.openmmlab import newest_whole

        checkpoint = self.checkpoint(run, options.ckpt, options.best)
        config, start = self.resolved(options, run), time.monotonic()
        config.work_dir, config.load_from, config.resume = options.output, None, False
        _start_fresh(config)
        runner = _made(config)
        self._load(runner.model, str(checkpoint))
        found = {name: float(value) for name, value in runner.test().items()}
        _part()
        if process_rank() == 0:
            told(str(checkpoint), found)
            newest = run is None or checkpoint == newest_whole(run.path)
            arm = "best" if options.best else "last" if newest else checkpoint.stem
            seconds = time.monotonic() - start
            record(Path(options.output), self.paper, arm + remark, found, config.get("seed", 0), seconds)
            print(Path(options.output) / "metrics.json")
        return config

    def checkpoint(self, run: RunFolder | None, named: str | None, best: bool = False) -> Path:
        """The file that `--ckpt` names, else the run's newest whole checkpoint, or the best one.

        Raises:
            UserError: no such checkpoint, or a file where the best of a run is asked for.
        """
        from paperkit.training.openmmlab import best_whole, newest_whole

        if named is not None and Path(named).is_file():
            if best:
                raise UserError(f"--best takes the best checkpoint of a run folder; {named} is one file")
            return Path(named)
        if run is None:
            raise UserError("no weights: name a checkpoint with --ckpt")
        metric = self._metric(run)
        found = best_whole(run.path, metric) if best else newest_whole(run.path)
        if found is None:
            kind = f"best_{metric}_*.pth" if best else "iter_*.pth or epoch_*.pth"
            raise UserError(f"{run.path} has no whole {kind}")
        return found

    def _metric(self, run: RunFolder) -> str:
        """By which the run chose its best checkpoint."""
        from paperkit.training.openmmlab import read_data

        if not (run.path / self.kept).is_file():
            return self.metric
        hooks = read_data(run.path / self.kept).get("default_hooks") or {}
        named = (hooks.get("checkpoint") or {}).get("save_best")
        return named if isinstance(named, str) and named != "auto" else self.metric


def changed(config: Any, changes: Sequence[str], launcher: str = "none", amp: bool = False) -> Any:
    """The config with the command line's changes, in place; `data_root=DIR` is the root of every data set.

    One process takes BatchNorm for SyncBN, as do several on CPUs, which have no other.
    """
    import torch

    from paperkit.training.openmmlab import mappings, parse_changes

    found = parse_changes(changes)
    config.merge_from_dict(found)
    if "data_root" in found:
        for mapping in (one for name in LOADERS for one in mappings(config.get(name))):
            if "data_root" in mapping:
                mapping["data_root"] = found["data_root"]
    config.launcher = launcher
    if launcher == "none" or not torch.cuda.is_available():
        for mapping in mappings(config.get("model")):
            if mapping.get("type") == "SyncBN":
                mapping["type"] = "BN"
    if amp:
        config.optim_wrapper.type = "AmpOptimWrapper" if torch.cuda.is_available() else "Bfloat16OptimWrapper"
    return config


def _made(config: Any) -> Any:
    """The Runner of a config. Several processes without GPUs join by gloo: mmengine's own way asks for a GPU each."""
    import torch
    from mmengine.runner import Runner

    if config.launcher == "pytorch" and not torch.cuda.is_available():
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        unused = config.get("find_unused_parameters", False)
        given = config.get("model_wrapper_cfg") or dict(find_unused_parameters=unused, broadcast_buffers=False)
        config.model_wrapper_cfg = dict(given, device_ids=None)
    return Runner.from_cfg(config)


def _part() -> None:
    """Processes leave their group together: one that ends first takes the others' connections away."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def _start_fresh(config: Any) -> None:
    """For a network whose weights a checkpoint gives: the files that its parts would start from are not read."""
    from paperkit.training.openmmlab import mappings

    for mapping in mappings(config.get("model")):
        if mapping.get("pretrained"):
            mapping["pretrained"] = None if isinstance(mapping["pretrained"], str) else False
        if any(one.get("type") == "Pretrained" for one in mappings(mapping.get("init_cfg"))):
            mapping["init_cfg"] = None
