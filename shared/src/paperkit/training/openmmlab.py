"""What makes a run of mmengine's Runner resume exactly, save whole files, and run no code that nobody named.

Configs register it by `custom_imports = dict(imports=["paperkit.training.openmmlab", ...])`. It needs mmengine alone;
data sets of mmsegmentation are in `paperkit.training.mmseg_data`, and the engine that a paper's verbs run is
`paperkit.training.runner`.

Resume: mmengine brings the sampler back to its place, but loses the random state of augmentation and dropout. Here both
are functions of (seed, place in the run): each image is augmented under a seed of its own, each step runs under
another. A run by epochs resumes exactly from the end of an epoch, one by iterations from any.
Code: a config file is executed when it is read, so only a file that the user names is. A run folder keeps the resolved
config as JSON (`write_data`), whose types must be names in mmengine's registries.
"""

import argparse
import contextlib
import importlib.util
import json
import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import mmengine.registry
import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.dataset import BaseDataset, DefaultSampler, InfiniteSampler
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import DATA_SAMPLERS, HOOKS, OPTIM_WRAPPERS, Registry
from mmengine.runner import EpochBasedTrainLoop
from mmengine.runner.checkpoint import get_torch_safe_globals

from paperkit.data.seeding import generators_kept, seed_generators
from paperkit.errors import UserError
from paperkit.files.atomic import write_atomic
from paperkit.files.weights import read_checkpoint

DATA, STEP = 1, 2  # streams of seeds


class _Draw(int):
    """The number of a sample, and the place of this draw in the run (over all processes)."""

    place: int


def _draw(index: int, place: int) -> _Draw:
    draw = _Draw(index)
    draw.place = place
    return draw


@DATA_SAMPLERS.register_module()
class PlacedSampler(InfiniteSampler):
    """mmengine's endless sampler, for runs by iterations; each number carries its place in the run."""

    def _indices_of_rank(self) -> Iterator[int]:
        for i, index in enumerate(super()._indices_of_rank()):
            yield _draw(index, i * self.world_size + self.rank)


@DATA_SAMPLERS.register_module()
class PlacedEpochSampler(DefaultSampler):
    """mmengine's sampler for runs by epochs (with `DistSamplerSeedHook`); each number carries its place in the run."""

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.total_size + self.rank
        for i, index in enumerate(super().__iter__()):
            yield _draw(index, first + i * self.world_size)


class Seeded(BaseDataset):
    """Before a data set of mmengine, `class SeededX(Seeded, X)`: augments by (seed, place in the run) alone.

    In any worker process, with one of the two samplers above; under another sampler the data set is as it was.

    Args:
        seed: run seed.
        dataset: as the data set's own.
    """

    def __init__(self, seed: int = 0, **dataset: Any) -> None:
        self.seed = seed
        super().__init__(**dataset)

    def prepare_data(self, idx: int) -> Any:
        """One sample through the pipeline; another one, as mmengine has it, where the pipeline gives none."""
        if not isinstance(idx, _Draw):
            return super().prepare_data(idx)
        with generators_kept():
            seed_generators(self.seed, DATA, idx.place)
            data = super().prepare_data(int(idx))
            for _ in range(0 if self.test_mode else self.max_refetch):
                if data is not None:
                    break
                data = super().prepare_data(self._rand_another())
            return data


@HOOKS.register_module()
class SeedIteration(Hook):
    """Seeds dropout and drop path of each step from (seed, iteration, rank); stops when loss or weights are not finite.

    So every checkpoint file that is there holds finite weights.
    """

    priority = "VERY_HIGH"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        torch.manual_seed(seed_generators(self.seed, STEP, runner.iter, runner.rank))

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        loss = (outputs or {}).get("loss")
        if loss is not None and not torch.isfinite(loss).all():
            self._stop(runner, "the loss is")

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """A gradient may break the weights while the loss before it was finite: such weights become no file.

        What metrics and their best were becomes plain numbers: numpy's are of types that safe readers may refuse.
        """
        floats = [t for t in checkpoint["state_dict"].values() if t.is_floating_point()]
        if not all(torch.isfinite(t).all() for t in floats):
            self._stop(runner, "the weights are")
        known = checkpoint["message_hub"]["runtime_info"]
        known.update({key: value.item() for key, value in known.items() if isinstance(value, np.generic)})

    def _stop(self, runner: Any, what: str) -> None:
        last = next(iter(_checkpoints(Path(runner.work_dir))), "none yet")
        rate = runner.cfg.get("optim_wrapper", {}).get("optimizer", {}).get("lr")
        lower = f": --cfg-options optim_wrapper.optimizer.lr={rate / 2:g}" if isinstance(rate, float | int) else ""
        raise UserError(
            f"{what} not finite at iteration {runner.iter}; last good checkpoint: {last}; try a lower rate{lower}"
        )


class EvaluateMissed(Hook):
    """Evaluates a resumed run before its next step where it was killed between a checkpoint and its evaluation.

    mmengine evaluates after the steps that it makes, so one that was saved and not evaluated would stay so for good.
    Where the best checkpoint is kept, also what was evaluated: a checkpoint holds only what was the best before it.
    """

    priority = "VERY_LOW"

    def before_train(self, runner: Any) -> None:
        loop = runner.train_loop
        epochs = isinstance(loop, EpochBasedTrainLoop)
        done, end = (runner.epoch, loop.max_epochs) if epochs else (runner.iter, loop.max_iters)
        due = done > 0 and (done % loop.val_interval == 0 or done == end) and done >= loop.val_begin
        best = any(isinstance(hook, CheckpointHook) and hook.save_best for hook in runner.hooks)
        if due and runner.val_loop is not None and (best or not self._evaluated(Path(runner.work_dir), done)):
            runner.val_loop.run()

    @staticmethod
    def _evaluated(folder: Path, done: int) -> bool:
        """Whether the run's logs hold an evaluation at that step; a training step's line has a loss, its own none."""
        lines = [line for path in folder.glob("*/vis_data/scalars.json") for line in path.read_text().splitlines()]
        for line in lines:
            with contextlib.suppress(ValueError):  # the last line of a killed process may be torn
                values = json.loads(line)
                if isinstance(values, dict) and values.get("step") == done and "loss" not in values:
                    return True
        return False


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """Automatic mixed precision in bfloat16, which needs no scaling of the loss; on a CPU too, unlike mmengine's."""

    @contextlib.contextmanager
    def optim_context(self, model: Any) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


@register_backend("whole_files")
class WholeFiles(LocalBackend):
    """mmengine's local files, but each is written whole or not at all."""

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        write_atomic(filepath, bytes(obj))

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        write_atomic(filepath, obj)


def read_config(path: str) -> Config:
    """The config of an mmengine file, which is executed.

    Raises:
        UserError: no such file, or not readable.
    """
    try:
        return Config.fromfile(path, format_python_code=False)  # it takes a second at every save
    except FileNotFoundError:
        raise UserError(f"no config at {path}") from None
    except Exception as error:
        raise UserError(f"{path} is no mmengine config: {error}") from error


def write_data(config: Config, path: Path) -> None:
    """Write a resolved config as JSON; a tuple stands as `{"tuple": [...]}`, since mmcv tells tuples from lists.

    Raises:
        UserError: a value that is no plain one, such as a function.
    """

    def refuse(value: Any) -> Any:
        raise UserError(f"the config holds {value!r}, which no data file can; give its registered name instead")

    text = json.dumps(_packed(config.to_dict()), indent=1, default=refuse)
    write_atomic(path, text + "\n")


def read_data(path: Path) -> Config:
    """The config that `write_data` wrote; nothing in it is executed or imported.

    Raises:
        UserError: no such file, no JSON of this form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=_unpacked)
    except OSError as error:
        raise UserError(f"cannot read the run's config {path}: {error.strerror}; name its file with --config") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"the run's config {path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"the run's config {path} is a {type(content).__name__}, not a mapping")
    return Config(content, format_python_code=False)


def _packed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _packed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_packed(item) for item in value]
        return {"tuple": items} if isinstance(value, tuple) else items
    return value


def _unpacked(entry: dict[str, Any]) -> Any:
    return tuple(entry["tuple"]) if entry.keys() == {"tuple"} and isinstance(entry["tuple"], list) else entry


def refuse_paths_to_code(value: Any, source: str, scopes: Sequence[str] = ("mmengine",)) -> None:
    """mmengine imports a type that is no registered name but a path to an object: `dict(type="subprocess.Popen", ...)`.

    Args:
        value: a config that was read as data.
        source: what errors call it.
        scopes: whose registries it may name, be it as `default_scope` or as `SCOPE.Name`; mmengine imports any other
            package that it finds.

    Raises:
        UserError: such a type, another package's registry, or a checkpoint to start from that could run code.
    """
    if isinstance(value, dict):
        for key in ("type", "constructor"):
            if (name := value.get(key)) is not None and not (isinstance(name, str) and _is_a_name(name, scopes)):
                raise UserError(f"{source}: {key} {name!r} is no registered name; to use it: --config FILE.py")
        for key in ("default_scope", "_scope_"):
            if (name := value.get(key)) not in (None, *scopes):
                raise UserError(f"{source}: {key} {name!r} is none of {', '.join(scopes)}; to use it: --config FILE.py")
        checkpoint = value.get("checkpoint")
        if value.get("type") == "Pretrained" and isinstance(checkpoint, str) and "://" not in checkpoint:
            refuse_code(checkpoint)
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            refuse_paths_to_code(item, source, scopes)


def _is_a_name(name: str, scopes: Sequence[str]) -> bool:
    """Whether mmengine can find nothing but a registered object by it: no module, and no object in a package."""
    scope, dot, bare = name.partition(".")
    if not dot:
        try:
            return name not in sys.modules and importlib.util.find_spec(name) is None
        except ValueError:
            return False
    trees = (root if root.scope == scope else root.children.get(scope) for root in _roots().values())
    return scope in scopes and any(tree is not None and bare in tree.module_dict for tree in trees)


def _roots() -> dict[str, Registry]:
    """mmengine's registries by their names in its module: MODELS, DATASETS, ..."""
    return {name: root for name, root in vars(mmengine.registry).items() if isinstance(root, Registry)}


def own_scope(scope: str) -> ModuleType:
    """mmengine's registries once more, as children of one scope: an object with MODELS, DATASETS, HOOKS, METRICS, ...

    A config with `default_scope = SCOPE` finds there what `@own_scope(SCOPE).MODELS.register_module()` registers, then
    what mmengine has. mmengine imports `SCOPE.registry` at every build and warns where there is none, so the
    object stands among the modules under that name. A second call gives the same object.
    """
    place = f"{scope}.registry"
    if place not in sys.modules:
        module = ModuleType(place, f"Registries of scope {scope}.")
        for name, root in _roots().items():
            setattr(module, name, Registry(root.name, parent=root, scope=scope))
        sys.modules[place] = module
    return sys.modules[place]


def parse_changes(changes: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as mmengine's own tools read them: 1e-4, true, None, [1,2], "text".

    Raises:
        UserError: a word without its equals sign.
    """
    for change in changes:
        if "=" not in change:
            raise UserError(f"--cfg-options {change}: give key=value")
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="*", action=DictAction, default={})
    return parser.parse_args(["--cfg-options", *changes]).cfg_options


def refuse_code(path: str) -> None:
    """mmengine opens a checkpoint that its safe reader refuses with the unsafe one; here such a file ends the command.

    Raises:
        UserError: a missing or damaged file, or a pickle that could run code.
    """
    read_checkpoint(path, allow=get_torch_safe_globals(), advice=None)


def newest_whole(folder: Path) -> Path | None:
    """The checkpoint (`iter_N.pth`, `epoch_N.pth`) of the highest number whose archive is undamaged."""
    return next(filter(_is_whole, _checkpoints(folder)), None)


def best_whole(folder: Path, metric: str) -> Path | None:
    """The checkpoint that a config's `CheckpointHook(save_best=metric)` keeps, if it is there and undamaged."""
    found = (path for path in _checkpoints(folder, f"best_{re.escape(metric.replace('/', '_'))}_"))
    return next(filter(_is_whole, found), None)


def _checkpoints(folder: Path, start: str = "") -> list[Path]:
    """mmengine's checkpoints in a folder, the highest number first."""
    found = ((re.fullmatch(rf"{start}(?:iter|epoch)_(\d+)\.pth", path.name), path) for path in folder.glob("*.pth"))
    numbered = [(int(match[1]), path) for match, path in found if match]
    return [path for _, path in sorted(numbered, reverse=True)]


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def mappings(value: Any) -> Iterator[Any]:
    """Every mapping in a config, itself first."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from mappings(item)
