"""Short clips of labelled videos, to pre-train a backbone by recognition as on Kinetics-400.

The list is a text file of lines `FILE NUMBER`, as mmaction2's lists of Kinetics are. Needs mmengine and mmaction2.
T frames, H height, W width.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from mmaction.structures import ActionDataSample
from mmengine.logging import print_log
from torchvision import tv_tensors
from torchvision.transforms import v2

import stpt.training.transforms  # noqa: F401  (registers CropClip and FlipClip)
from paperkit.errors import UserError
from paperkit.files.bounded import regular_file
from paperkit.training.openmmlab import Seeded, own_scope
from stpt.training.videos import VideoFile

OWN = own_scope("stpt")


@OWN.DATASETS.register_module()
class VideoClips(Seeded):
    """One clip of each listed video: from a random place for training, from the middle for tests.

    Args:
        ann_file: the list; below `data_root`.
        videos: folder that its files are named from; below `data_root`.
        num_classes: labels are 0 .. num_classes - 1.
        clip_length, clip_stride: T, and the step between its frames in the file; a video that is too short is repeated.
        short_side: pixels of the frames' shorter side.
        bad: of training, what becomes of videos that cannot be read: "skip" takes another clip and says so, "refuse".
        reader: as `VideoFile`.
        seed: run seed.
        dataset: of mmengine's BaseDataset.
    """

    def __init__(
        self,
        ann_file: str,
        videos: str = "",
        num_classes: int = 400,
        clip_length: int = 96,
        clip_stride: int = 2,
        short_side: int = 128,
        bad: Literal["skip", "refuse"] = "skip",
        reader: str = "pyav",
        seed: int = 0,
        **dataset: Any,
    ) -> None:
        if min(clip_length, clip_stride, short_side) < 1:
            raise UserError(
                f"clips of {clip_length} frames every {clip_stride} of {short_side} pixels: all must be 1 or more"
            )
        if bad not in ("skip", "refuse"):
            raise UserError(f"bad {bad!r} is none of skip, refuse")
        self.videos, self.num_classes, self.bad = videos, num_classes, bad
        self.clip_length, self.clip_stride = clip_length, clip_stride
        self.reading: dict[str, Any] = dict(short_side=short_side, reader=reader, threads=1)
        super().__init__(seed=seed, ann_file=ann_file, data_prefix={}, **dataset)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Files and labels.

        Raises:
            UserError: a missing or empty list, a line of another form, a label that is no class, a first file that is
                not there.
        """
        root = Path(self.data_root or "") / self.videos
        found: list[dict[str, Any]] = []
        path = regular_file(self.ann_file, "list of videos")
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if not line.strip():
                continue
            file, _, label = line.rpartition(" ")
            if not file or not label.isdecimal():
                raise UserError(f"{path} line {number} is {line[:60]!r}; FILE NUMBER is due")
            if int(label) >= self.num_classes:
                raise UserError(f"{path} line {number} has label {label}; there are {self.num_classes} classes, from 0")
            found.append({"path": str(root / file), "label": int(label)})
        if not found:
            raise UserError(f"{path} lists no video")
        regular_file(found[0]["path"], "video")
        return found

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """A file's path and label, and how to take a clip of it."""
        reading = dict(
            length=self.clip_length, stride=self.clip_stride, random=not self.test_mode, reading=self.reading
        )
        skip = not self.test_mode and self.bad == "skip"
        return {**super().get_data_info(idx), **reading, "skip": skip}


@OWN.TRANSFORMS.register_module()
class DecodeClip:
    """Adds `clip`, uint8 (T, H, W, 3); gives nothing for a bad video that may be skipped, and another is drawn."""

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return {**sample, "clip": self._read(sample)}
        except UserError as error:
            if not sample["skip"]:
                raise
            print_log(f"skipped: {error}", "current", level=30)
            return None

    def _read(self, sample: dict[str, Any]) -> np.ndarray:
        video, length, stride = VideoFile(sample["path"], **sample["reading"]), sample["length"], sample["stride"]
        spare = max(len(video) - (length - 1) * stride - 1, 0)
        start = np.random.randint(spare + 1) if sample["random"] else spare // 2
        clip = video.read(start, start + length * stride, stride)
        return clip[np.arange(length) % len(clip)]


@OWN.TRANSFORMS.register_module()
class RandAugmentClip:
    """RandAugment (arXiv 1909.13719) by torchvision: the same steps for all frames of a clip.

    Args:
        num_ops, magnitude: steps, and their strength of 0 to 30.
    """

    def __init__(self, num_ops: int = 2, magnitude: int = 9) -> None:
        self.augment = v2.RandAugment(num_ops, magnitude)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        frames = torch.from_numpy(np.ascontiguousarray(sample["clip"])).permute(0, 3, 1, 2)
        return {**sample, "clip": self.augment(tv_tensors.Video(frames)).permute(0, 2, 3, 1).numpy()}


@OWN.TRANSFORMS.register_module()
class PackClip:
    """A sample as models take it: `inputs` uint8 (3, T, H, W), and `data_samples` with `gt_label` (1,)."""

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        data = ActionDataSample(metainfo={"path": sample["path"]}).set_gt_label(sample["label"])
        clip = torch.from_numpy(np.ascontiguousarray(sample["clip"].transpose(3, 0, 1, 2)))
        return {"inputs": clip, "data_samples": data}
