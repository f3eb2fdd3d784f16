"""LITv2 in mmsegmentation: its registries get the backbone, and what makes a run resume exactly and save whole files.

A config says ``custom_imports = dict(imports=["litv2.models.segmenter"])`` and works with mmsegmentation's own tools as
well.
Resume: the fork brings the sampler back to its place, but loses the random state of augmentation and dropout. Here both
are functions of (seed, place in the run): each image is augmented under a seed of its own, each step runs under
another.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import Hook
from mmseg.datasets import ADE20KDataset
from mmseg.registry import DATA_SAMPLERS, DATASETS, HOOKS, MODELS

from litv2.models.backbone import SEGMENTATION_NORMS, LITv2Backbone
from litv2.models.pyramid import architecture
from litv2.models.released import fit_released, read_released
from paperkit.data.resumable import generators_kept, seed_generators
from paperkit.errors import UserError
from paperkit.files.runs import write_atomic
from paperkit.files.weights import load_strict

LAYOUT = "images/{training,validation}/*.jpg and annotations/{training,validation}/*.png"
DATA, STEP = 1, 2  # streams of seeds


@MODELS.register_module()
class LITv2Segmentation(LITv2Backbone):
    """The backbone with four output norms.

    Args:
        name: published size.
        pretrained: released or own classifier file to start from; None for a fresh network.
        out_norms: stages whose output is normalised.
        options: changes to the published size.
    """

    def __init__(
        self, name: str = "litv2_s", pretrained: str | None = None, out_norms: Any = SEGMENTATION_NORMS, **options: Any
    ) -> None:
        super().__init__(out_norms=out_norms, **{**architecture(name), **options})
        if pretrained:
            load_strict(self, fit_released(read_released(pretrained), self), pretrained)


class _Draw(int):
    """An image's number that also knows the how-manieth draw of the run it is."""

    place: int


def _draw(index: int, place: int) -> _Draw:
    draw = _Draw(index)
    draw.place = place
    return draw


@DATA_SAMPLERS.register_module()
class PlacedSampler(InfiniteSampler):
    """mmengine's endless sampler, its numbers marked with their place in the run (over all processes)."""

    def _indices_of_rank(self) -> Iterator[int]:
        for i, index in enumerate(super()._indices_of_rank()):
            yield _draw(index, i * self.world_size + self.rank)


@DATASETS.register_module()
class SeededADE20K(ADE20KDataset):
    """ADE20K whose augmentation is a function of (seed, place in the run), in any worker process.

    Args:
        seed: run seed.
    """

    def __init__(self, seed: int = 0, **dataset: Any) -> None:
        self.seed = seed
        super().__init__(**dataset)

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
        lacking = next((d for d in self.data_list if not os.path.isfile(d["seg_map_path"])), None)
        if lacking is not None:
            raise UserError(f"{lacking['img_path']} has no annotation: {lacking['seg_map_path']} is missing")

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


@register_backend("whole_files")
class WholeFiles(LocalBackend):
    """mmengine's local files, but each is written whole or not at all."""

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        write_atomic(filepath, bytes(obj))

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        write_atomic(filepath, obj)
