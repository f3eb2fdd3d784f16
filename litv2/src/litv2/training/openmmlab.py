"""What makes a run of mmengine's Runner resume exactly, save whole files, and run no code that nobody named.

Configs register it by `custom_imports = dict(imports=["litv2.training.openmmlab", ...])`.

Resume: mmengine brings the sampler back to its place, but loses the random state of augmentation and dropout. Here both
are functions of (seed, place in the run): each image is augmented under a seed of its own, each step runs under
another.
Code: a config file is executed when it is read, so only a file that the user names is. A run folder keeps the resolved
config as JSON (`write_data`), whose types must be names in mmengine's registries.
"""

import argparse
import contextlib
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.dataset import InfiniteSampler
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import Hook
from mmengine.runner.checkpoint import get_torch_safe_globals
from mmseg.datasets import ADE20KDataset
from mmseg.registry import DATA_SAMPLERS, DATASETS, HOOKS

from litv2.training.label_maps import image_pairs, with_own_readers
from paperkit.data.resumable import generators_kept, seed_generators
from paperkit.errors import UserError
from paperkit.files.atomic import write_atomic
from paperkit.files.weights import read_checkpoint

LAYOUT = "images/{training,validation}/*.jpg and annotations/{training,validation}/*.png"
DATA, STEP = 1, 2  # streams of seeds


class _Draw(int):
    """The number of an image, and the place of this draw in the run (over all processes)."""

    place: int


def _draw(index: int, place: int) -> _Draw:
    draw = _Draw(index)
    draw.place = place
    return draw


@DATA_SAMPLERS.register_module()
class PlacedSampler(InfiniteSampler):
    """mmengine's endless sampler; each image number carries its place in the run."""

    def _indices_of_rank(self) -> Iterator[int]:
        for i, index in enumerate(super()._indices_of_rank()):
            yield _draw(index, i * self.world_size + self.rank)


@DATASETS.register_module()
class SeededADE20K(ADE20KDataset):
    """ADE20K whose augmentation is a function of (seed, place in the run), in any worker process.

    Args:
        seed: run seed.
        pipeline: mmsegmentation's steps; those that read files are replaced by `litv2.training.label_maps`'.
        dataset: as mmsegmentation's; `reduce_zero_label=False` for label maps whose 0 is the first class.
    """

    def __init__(self, seed: int = 0, pipeline: Sequence[Any] = (), **dataset: Any) -> None:
        self.seed = seed
        super().__init__(pipeline=with_own_readers(pipeline), **dataset)

    def full_init(self) -> None:
        """Reads the list of images.

        Raises:
            UserError: a folder that is missing or holds no image.
        """
        images, maps = Path(self.data_prefix["img_path"]), Path(self.data_prefix["seg_map_path"])
        for folder in (images, maps):
            if not folder.is_dir() or not any(folder.iterdir()):
                raise UserError(f"no ADE20K files in {folder}; the data root must hold {LAYOUT}")
        super().full_init()

    def load_data_list(self) -> list[dict[str, Any]]:
        """The images beneath `img_path`, of whatever kind, each with the label map of its name beneath `seg_map_path`.

        Raises:
            UserError: as `litv2.training.label_maps.image_pairs`.
        """
        if self.ann_file and not os.path.isdir(self.ann_file):
            data = super().load_data_list()
        else:
            common = dict(label_map=self.label_map, reduce_zero_label=self.reduce_zero_label)
            pairs = image_pairs(self.data_prefix["img_path"], self.data_prefix["seg_map_path"])
            data = [dict(img_path=image, seg_map_path=labels, **common, seg_fields=[]) for image, labels in pairs]
        # A map of labels goes from the data set's own classes to those that were chosen.
        classes = len(self.METAINFO["classes"] if self.label_map else self.metainfo["classes"])
        return [{**entry, "classes": classes} for entry in data]

    def prepare_data(self, idx: int) -> Any:
        """One sample through the pipeline."""
        if not isinstance(idx, _Draw):
            return super().prepare_data(idx)
        with generators_kept():
            seed_generators(self.seed, DATA, idx.place)
            return super().prepare_data(int(idx))


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
        """A gradient may break the weights while the loss before it was finite: such weights become no file."""
        floats = [t for t in checkpoint["state_dict"].values() if t.is_floating_point()]
        if not all(torch.isfinite(t).all() for t in floats):
            self._stop(runner, "the weights are")

    def _stop(self, runner: Any, what: str) -> None:
        last = max(Path(runner.work_dir).glob("iter_*.pth"), key=lambda p: p.stat().st_mtime, default="none yet")
        raise UserError(
            f"{what} not finite at iteration {runner.iter}; last good checkpoint: {last}; "
            "try a lower rate: --cfg-options optim_wrapper.optimizer.lr=5e-5"
        )


class EvaluateMissed(Hook):
    """Evaluates a resumed run before its next step where it was killed between a checkpoint and its evaluation.

    mmengine evaluates after the steps that it makes, so one that was saved and not evaluated would stay so for good.
    """

    priority = "VERY_LOW"

    def before_train(self, runner: Any) -> None:
        done, loop = runner.iter, runner.train_loop
        due = done > 0 and (done % loop.val_interval == 0 or done == loop.max_iters) and done >= loop.val_begin
        if due and runner.val_loop is not None and not self._evaluated(Path(runner.work_dir), done):
            runner.val_loop.run()

    @staticmethod
    def _evaluated(folder: Path, iteration: int) -> bool:
        """Whether the run's logs hold an evaluation at that iteration; a step's line has a loss, its own none."""
        lines = [line for path in folder.glob("*/vis_data/scalars.json") for line in path.read_text().splitlines()]
        for line in lines:
            with contextlib.suppress(ValueError):  # the last line of a killed process may be torn
                values = json.loads(line)
                if isinstance(values, dict) and values.get("step") == iteration and "loss" not in values:
                    return True
        return False


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
        return Config.fromfile(path)
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
    return Config(content)


def _packed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _packed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_packed(item) for item in value]
        return {"tuple": items} if isinstance(value, tuple) else items
    return value


def _unpacked(entry: dict[str, Any]) -> Any:
    return tuple(entry["tuple"]) if entry.keys() == {"tuple"} and isinstance(entry["tuple"], list) else entry


SCOPES = ("mmseg", "mmengine")
"""Packages whose registries a config may name; mmengine imports any other one that it finds."""


def refuse_paths_to_code(value: Any, source: str) -> None:
    """mmengine imports a type that is no registered name but a path to an object: `dict(type="subprocess.Popen", ...)`.

    Raises:
        UserError: such a type, another package's registry, or a checkpoint to start from that could run code.
    """
    if isinstance(value, dict):
        for key in ("type", "constructor"):
            if (name := value.get(key)) is not None and (not isinstance(name, str) or "." in name):
                raise UserError(f"{source}: {key} {name!r} is no registered name; to use it: --config FILE.py")
        for key in ("default_scope", "_scope_"):
            if (name := value.get(key)) not in (None, *SCOPES):
                raise UserError(f"{source}: {key} {name!r} is none of {', '.join(SCOPES)}; to use it: --config FILE.py")
        checkpoint = value.get("checkpoint")
        if value.get("type") == "Pretrained" and isinstance(checkpoint, str) and "://" not in checkpoint:
            refuse_code(checkpoint)
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            refuse_paths_to_code(item, source)


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
