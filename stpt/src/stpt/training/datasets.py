"""Clips of annotated videos: THUMOS14's windows, ActivityNet's whole videos, and one's own data in either way.

Needs mmengine and mmaction2. Configs register it by `custom_imports`, and name it `TADDataset` in scope `stpt`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mmengine.logging import print_log
from numpy.typing import NDArray

import stpt.training.transforms  # noqa: F401  (registers the steps of the pipelines)
from paperkit.errors import UserError
from paperkit.training.openmmlab import Seeded, own_scope
from stpt.method.splice import block_length
from stpt.method.windows import actions_in_window, training_windows, window_offsets
from stpt.models.labels import ANY_ACTION
from stpt.training.annotations import SLACK, Annotations, Video, bare, read_annotations
from stpt.training.frames import Source, open_frames
from stpt.training.videos import VideoInfo

Rows = NDArray[np.float64]


@own_scope("stpt").DATASETS.register_module()
class TADDataset(Seeded):
    """Clips for temporal action detection, augmented by (seed, place in the run) alone.

    Args:
        ann_file: annotations, of any form that `stpt.training.annotations` reads; below `data_root`.
        frames: folder of prepared arrays, of AFSD's arrays or of videos; below `data_root`.
        subset: of the annotations; several are joined; none takes all.
        clips: "windows" (THUMOS14): T frames every `stride`, for training those that hold an action as a whole; "whole"
            (ActivityNet): each video is one clip of at most T frames, for training if it has an action.
        clip_length: T.
        stride: of windows: 30 for training and 128 for tests, as in AFSD.
        classes: names in the order of the network's outputs, where the file does not say it.
        class_agnostic: every action has label 1: the detector only tells actions from background.
        consistency: rule for the length of spliced blocks, "thumos" or "activitynet"; None: no splice.
        pad_mode: of what fills a clip up. "black": 0 before the pixels are normalised (-1 after); "grey": 0 after
            (127.5 before); "afsd": as AFSD has it on THUMOS14, black in training and grey in tests.
        faults: of training, what becomes of actions before, past or without time: "refuse" or "mend", see
            `read_annotations`.
        missing: what becomes of videos without frames: "refuse" or "skip".
        table: AFSD's `*_video_info.csv`, for its arrays; below `data_root`.
        fps, max_frames, size, reader: for video files, as `fps`, `frames`, `size`, `reader` of `VideoFile`.
        seed: run seed.
        dataset: of mmengine's BaseDataset: `data_root`, `pipeline`, `test_mode`, ...
    """

    def __init__(
        self,
        ann_file: str,
        frames: str,
        subset: str | Sequence[str] | None = None,
        clips: Literal["windows", "whole"] = "windows",
        clip_length: int = 256,
        stride: int = 30,
        classes: Sequence[str] | None = None,
        class_agnostic: bool = False,
        consistency: Literal["thumos", "activitynet"] | None = None,
        pad_mode: Literal["black", "grey", "afsd"] = "afsd",
        faults: Literal["refuse", "mend"] = "refuse",
        missing: Literal["refuse", "skip"] = "refuse",
        table: str | None = None,
        fps: float | None = 10.0,
        max_frames: int | None = None,
        size: tuple[int, int] = (112, 112),
        reader: str = "pyav",
        seed: int = 0,
        **dataset: Any,
    ) -> None:
        _one_of("clips", clips, ("windows", "whole"))
        _one_of("pad_mode", pad_mode, ("black", "grey", "afsd"))
        _one_of("missing", missing, ("refuse", "skip"))
        _one_of("faults", faults, ("refuse", "mend"))
        _one_of("consistency", consistency, (None, "thumos", "activitynet"))
        self.frames, self.table, self.missing, self.faults = frames, table, missing, faults
        self.subsets = [subset] if subset is None or isinstance(subset, str) else list(subset)
        self.clips, self.clip_length, self.stride = clips, clip_length, stride
        self.classes, self.class_agnostic, self.consistency = classes, class_agnostic, consistency
        self.reading: dict[str, Any] = dict(fps=fps, frames=max_frames, size=tuple(size), reader=reader)
        filling = {"afsd": "grey" if dataset.get("test_mode") else "black"}
        self.pad_mode = filling.get(pad_mode, pad_mode)
        super().__init__(seed=seed, ann_file=ann_file, data_prefix={}, **dataset)

    def load_data_list(self) -> list[dict[str, Any]]:
        """All clips.

        Raises:
            UserError: annotations or frames that are missing or wrong; no clip at all.
        """
        root = Path(self.data_root or "")
        table = None if self.table is None else root / self.table
        self.source: Source = open_frames(root / self.frames, table, **self.reading)
        annotations = self._annotations()
        self._metainfo["classes"] = (ANY_ACTION,) if self.class_agnostic else annotations.classes
        videos = self._with_frames(list(annotations.videos.values()))
        found = [clip for video in videos for clip in self._clips(video, annotations)]
        if not found:
            raise UserError(
                f"{self.ann_file}: none of {len(videos)} videos has a clip of {self.clip_length} frames with a whole "
                "action; take longer clips, or --data.clips whole"
            )
        return found

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """A clip's place, with the source of its frames."""
        return {**super().get_data_info(idx), "source": self.source}

    def _annotations(self) -> Annotations:
        faults: Any = "keep" if self.test_mode else self.faults
        parts = [read_annotations(self.ann_file, subset, self.classes, faults) for subset in self.subsets]
        return Annotations({name: video for part in parts for name, video in part.videos.items()}, parts[0].classes)

    def _with_frames(self, videos: list[Video]) -> list[Video]:
        there = {bare(name) for name in self.source.names()}
        absent = [video.name for video in videos if bare(video.name) not in there]
        if absent:
            said = f"{len(absent)} of {len(videos)} videos have no frames in {self.frames}, such as {absent[0]}"
            if self.missing == "refuse" or len(absent) == len(videos):
                raise UserError(f"{said}; get them, or leave them out with --data.missing skip")
            print_log(f"{said}; they are left out", "current")
        return [video for video in videos if bare(video.name) in there]

    def _clips(self, video: Video, annotations: Annotations) -> Iterator[dict[str, Any]]:
        info, length = self.source.info(video.name), self.clip_length
        actions = self._rows(video, info, annotations)
        count = info.sample_count
        if self.clips == "whole":
            if count > length:
                raise UserError(
                    f"{video.name} has {count} frames and a whole clip at most {length}: prepare it with --frames "
                    f"{length}, or take windows"
                )
            inside = actions.clip([0, 0, 0], [count, count, np.inf])
            inside = inside[inside[:, 1] > inside[:, 0]]
            shortest = float((inside[:, 1] - inside[:, 0]).min()) if len(inside) else float(length)
            windows = [(0, inside)] if self.test_mode or len(inside) else []
        elif self.test_mode:
            actions = actions[actions[:, 1] > actions[:, 0]]
            offsets = window_offsets(count, length, self.stride)
            windows = [(offset, actions_in_window(actions, offset, length)[0]) for offset in offsets]
            shortest = 0.0
        else:
            windows, shortest = training_windows(actions, count, length, self.stride)
        th = block_length(shortest, self.consistency) if self.consistency else 0
        common = dict(video=video.name, length=length, sample_fps=info.sample_fps, duration=info.duration, th=th,
                      at_least=self.consistency == "activitynet")  # fmt: skip
        for offset, found in windows:
            frame_num = min(count - offset, length)
            yield dict(**common, offset=offset, frame_num=frame_num, actions=found, pad_mode=self.pad_mode)

    def _rows(self, video: Video, info: VideoInfo, annotations: Annotations) -> Rows:
        """(A, 3): start and end among the kept frames of the video, label."""
        rows = []
        for action in video.actions:
            start, end = action.start, action.end
            if not self.test_mode and end > info.duration + SLACK:
                if self.faults == "refuse":
                    raise UserError(
                        f"{self.ann_file}: {video.name} has an action ({action.label}) of {start:g} to {end:g} s, and "
                        f"its frames end at {info.duration:.1f} s; --data.faults mend cuts such"
                    )
                end = min(end, info.duration)
                if end <= start:
                    continue
            label = 1 if self.class_agnostic else annotations.index(action.label)
            rows.append((info.position(start), info.position(end), label))
        return np.array(rows, np.float64).reshape(-1, 3)


def _one_of(name: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        raise UserError(f"{name} {value!r} is none of {', '.join(map(str, known))}")
