"""Data sets of mmsegmentation whose augmentation resumes exactly; needs mmsegmentation.

Configs register them by `custom_imports = dict(imports=["paperkit.training.mmseg_data", ...])`, which registers what
`paperkit.training.openmmlab` has as well. Images and label maps are read by `paperkit.data.label_maps`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import TRANSFORMS
from mmseg.datasets import ADE20KDataset, BaseSegDataset, CityscapesDataset
from mmseg.registry import DATASETS

from paperkit.data.label_maps import NOTHING, class_names, image_pairs, read_labels
from paperkit.data.pictures import read_picture
from paperkit.errors import UserError
from paperkit.training.openmmlab import Seeded


class SeededScenes(Seeded, BaseSegDataset):
    """Pictures and label maps; those below say of which kind.

    Args:
        seed: run seed.
        pipeline: mmsegmentation's steps; those that read files are replaced by the ones of this module.
        void: numbers of the label maps that stand for nothing, besides 255.
        dataset: as mmsegmentation's.
    """

    kind, layout = "segmentation", "images and label maps"
    both = False

    def __init__(self, seed: int = 0, pipeline: Sequence[Any] = (), void: Sequence[int] = (), **dataset: Any) -> None:
        self.void = tuple(void)
        super().__init__(seed=seed, pipeline=with_own_readers(pipeline), **dataset)

    def full_init(self) -> None:
        """Reads the list of images.

        Raises:
            UserError: a folder that is missing or holds no image.
        """
        images, maps = Path(self.data_prefix["img_path"]), Path(self.data_prefix["seg_map_path"])
        for folder in (images, maps):
            if not folder.is_dir() or not any(folder.iterdir()):
                raise UserError(f"no {self.kind} files in {folder}; the data root must hold {self.layout}")
        super().full_init()

    def load_data_list(self) -> list[dict[str, Any]]:
        """The images beneath `img_path`, of whatever kind, each with the label map of its name beneath `seg_map_path`.

        Raises:
            UserError: as `paperkit.data.label_maps.image_pairs`.
        """
        if self.ann_file and not os.path.isdir(self.ann_file):
            data = super().load_data_list()
        else:
            common = dict(label_map=self.label_map, reduce_zero_label=self.reduce_zero_label)
            tails = dict(image_tail=_tail(self.img_suffix), map_tail=_tail(self.seg_map_suffix))
            prefix = self.data_prefix
            pairs = image_pairs(prefix["img_path"], prefix["seg_map_path"], **tails, both=self.both)
            data = [dict(img_path=image, seg_map_path=labels, **common, seg_fields=[]) for image, labels in pairs]
        # A map of labels goes from the data set's own classes to those that were chosen.
        classes = len(self.METAINFO["classes"] if self.label_map else self.metainfo["classes"])
        return [{**entry, "classes": classes, "void": self.void} for entry in data]


@DATASETS.register_module()
class SeededADE20K(SeededScenes, ADE20KDataset):
    """ADE20K; `reduce_zero_label=False` for label maps whose 0 is the first class."""

    kind = "ADE20K"
    layout = "images/{training,validation}/*.jpg and annotations/{training,validation}/*.png"


@DATASETS.register_module()
class SeededCityscapes(SeededScenes, CityscapesDataset):
    """Cityscapes, fine annotations, in the numbers of its 19 classes."""

    kind = "Cityscapes"
    layout = (
        "leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and gtFine/{train,val}/CITY/*_gtFine_labelTrainIds.png (made "
        "by cityscapesscripts' createTrainIdLabelImgs)"
    )


@DATASETS.register_module()
class SeededFolder(SeededScenes):
    """Any two folders of pictures and label maps of the same names (grey or palette PNG); each must have its partner.

    Args:
        classes: names in the order of their numbers, or a text file (in the data root) of one name a line.
        data_root: folder of the two, and of that file.
        scenes: as `SeededScenes`.
    """

    kind = "picture and label"
    layout = "a folder of pictures and one of label maps, as the config's data_prefix names them"
    both = True

    def __init__(self, classes: str | Sequence[str], data_root: str = "", **scenes: Any) -> None:
        names = class_names(Path(data_root) / classes) if isinstance(classes, str) else tuple(classes)
        super().__init__(metainfo=dict(classes=names), data_root=data_root, **scenes)


def _tail(suffix: str) -> str:
    """`_leftImg8bit` of `_leftImg8bit.png`."""
    return suffix.rpartition(".")[0]


def with_own_readers(pipeline: Sequence[Any]) -> list[Any]:
    """A pipeline whose plain reading steps are those below; a step with options beyond ours stays as it is."""
    ours = {"LoadImageFromFile": ("mmengine.PictureFromFile", {"type"}),
            "LoadAnnotations": ("mmengine.LabelsFromFile", {"type", "reduce_zero_label"})}  # fmt: skip
    steps = []
    for step in pipeline:
        name, options = ours.get(str(step.get("type")), ("", set())) if isinstance(step, dict) else ("", set())
        steps.append({**step, "type": name} if name and set(step) <= options else step)
    return steps


@TRANSFORMS.register_module()
class PictureFromFile:
    """`img_path` -> `img` (H, W, 3), blue first, upright as a viewer shows it."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        image = np.ascontiguousarray(np.asarray(read_picture(results["img_path"]))[..., ::-1])
        return {**results, "img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}


@TRANSFORMS.register_module()
class LabelsFromFile:
    """`seg_map_path` -> `gt_seg_map` (H, W) of class numbers, 255 where there is nothing.

    Args:
        reduce_zero_label: whether 0 stands for nothing and 1 for the first class; None takes the data set's word.
    """

    def __init__(self, reduce_zero_label: bool | None = None) -> None:
        self.reduce_zero_label = reduce_zero_label

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        path, reduced = results["seg_map_path"], bool(results["reduce_zero_label"])
        if self.reduce_zero_label not in (None, reduced):
            raise UserError(
                f"reduce_zero_label is {reduced} in the data set and {self.reduce_zero_label} in its pipeline's "
                "LoadAnnotations; give both the same"
            )
        image = (results["img_path"], results["ori_shape"]) if "ori_shape" in results else None
        labels = read_labels(path, results["classes"], reduced=reduced, void=results["void"], image=image)
        if results.get("label_map") is not None:
            table = np.full(256, NOTHING, np.uint8)
            for old, new in results["label_map"].items():
                table[old] = new
            labels = table[labels]
        return {**results, "gt_seg_map": labels, "seg_fields": [*results["seg_fields"], "gt_seg_map"]}
