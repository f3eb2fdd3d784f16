"""What the tests share: the command, small video files, good and bad, and data folders of every layout.

In every made video a bright square stands on dark noise and moves during an action: sideways for the first class, up
and down for the second. All is a function of the seed.
"""

import csv
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray

from paperkit.testing.commands import Command

stpt = Command(
    "stpt",
    "stpt.cli:main",
    preload=(
        "stpt.experiment.run",
        "stpt.training.timeline_hook",
        "stpt.models.mm_detector",
        "stpt.training.datasets",
        "av",
    ),
)
CONFIGS = Path(__file__).parents[1] / "configs"
Actions = Sequence[tuple[float, float, str]]
"""(start s, end s, class) of a video."""
CLASSES = ("BaseballPitch", "BasketballDunk")
IDS = {"BaseballPitch": 7, "BasketballDunk": 9}


def frames_of(
    actions: Actions,
    count: int,
    fps: float = 10.0,
    size: tuple[int, int] = (32, 32),
    seed: int = 0,
    classes: Sequence[str] = CLASSES,
) -> NDArray[np.uint8]:
    """The pictures of a made video, (count, H, W, 3).

    Args:
        size: (H, W).
    """
    height, width = size
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 60, (count, height, width, 3), dtype=np.uint8)
    side = max(2, min(size) // 4)
    for i in range(count):
        row, column = (height - side) // 2, (width - side) // 2
        for start, end, label in actions:
            if start <= i / fps <= end:
                moved = round(side * np.sin(2 * np.pi * (i / fps - start)))
                row, column = (row, column + moved) if label == classes[0] else (row + moved, column)
        pixels[i, row : row + side, column : column + side] = 230
    return pixels


def write_video(
    path: Path,
    pixels: NDArray[np.uint8],
    rate: float = 10.0,
    times: Sequence[int] | None = None,
    codec: str = "libx264",
    container: str | None = None,
) -> Path:
    """Pictures (N, H, W, 3) as a video file; H and W must be even.

    Args:
        times: of the pictures in milliseconds, for a variable rate.
        container: format, where the file's name does not tell it ("h264": a bare stream without time stamps).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12", "preset": "veryfast", "g": "12"} if codec == "libx264" else {}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        file.start_encoding()  # writes the header even if no picture comes
        for i, picture in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def make_video(
    path: Path,
    seconds: float = 4.0,
    fps: float = 10.0,
    actions: Actions = ((1.0, 2.5, CLASSES[0]),),
    size: tuple[int, int] = (32, 48),
    seed: int = 0,
) -> Path:
    """A good file of constant rate."""
    return write_video(path, frames_of(actions, round(seconds * fps), fps, size, seed), fps)


def make_variable(path: Path, size: tuple[int, int] = (32, 48)) -> Path:
    """3 s of variable rate: a second of 25 pictures, then two of 5.

    Each is as bright as its time: at 10 a second sampled picture k must be of brightness 8 k, nearly.
    """
    times = [40 * i for i in range(25)] + [1000 + 200 * i for i in range(10)]
    pixels = np.stack([np.full((*size, 3), round(0.08 * t), np.uint8) for t in times])
    return write_video(path, pixels, 25, times)


def make_bad_videos(folder: Path) -> dict[str, Path]:
    """Files that hold no video that can be used, by what is wrong with them."""
    folder.mkdir(parents=True, exist_ok=True)
    good = make_video(folder / "good.mkv", 4.0).read_bytes()
    contents = {
        "empty": ("empty.mp4", b""),
        "text": ("text.mp4", b"no video at all\n" * 40),
        "cut": ("cut.mkv", good[: len(good) // 2]),
        "torn": ("torn.mp4", make_video(folder / "whole.mp4", 4.0).read_bytes()[:-200]),
    }
    bad = {name: folder / file for name, (file, _) in contents.items()}
    for name, (_, content) in contents.items():
        bad[name].write_bytes(content)
    bad["no video"] = _write_silence(folder / "sound.wav")
    bad["no frames"] = write_video(folder / "header.mkv", frames_of((), 0, size=(32, 48)))
    bad["no times"] = write_video(folder / "bare.h264", frames_of((), 12, size=(32, 48)), container="h264")
    for name in ("good.mkv", "whole.mp4"):
        (folder / name).unlink()
    return bad


def _write_silence(path: Path) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        frame: Any = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate, frame.pts = 8000, 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def made_actions(seconds: float, seed: int, classes: Sequence[str] = CLASSES) -> list[tuple[float, float, str]]:
    """Two actions, one of each class, with background before, between and after.

    The first lasts 1.5 to 4 s and the second a third of it, so that the first can be spliced.
    """
    generator = np.random.default_rng((7, seed))
    found, length = [], float(np.clip(0.3 * seconds, 1.5, 4.0))
    for i, label in enumerate(classes[:2]):
        start = seconds * (0.12 + 0.45 * i) + generator.uniform(0, 0.05 * seconds)
        found.append((round(start, 1), round(start + length * (1, 0.33)[i], 1), label))
    return found


def make_thumos(root: Path, videos: int = 2, seconds: float = 20.0, side: int = 32) -> Path:
    """AFSD's folder of THUMOS14: arrays at 10 frames a second (of videos at 30), its CSV files, the evaluator's JSON.

    `validation_npy`, `test_npy`, `{val,test}_video_info.csv`, `{val,test}_Annotation_ours.csv`, `thumos_gt.json` and
    the texts of the data set itself, `annotations_{val,test}/CLASS_{val,test}.txt`.
    """
    database: dict[str, Any] = {}
    for number, (split, long, folder) in enumerate(
        (("val", "validation", "validation_npy"), ("test", "test", "test_npy"))
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        infos, rows, texts = [], [], dict.fromkeys(CLASSES, "")
        for i in range(videos):
            name, seed = f"video_{long}_{i + 1:07d}", 10 * number + i
            actions, count = made_actions(seconds, seed), round(10 * seconds)
            np.save(root / folder / f"{name}.npy", frames_of(actions, count, size=(side, side), seed=seed))
            infos.append([name, 30.0, 10.0, 3 * count, count])
            rows += [[name, c, IDS[c], a, b, round(30 * a), round(30 * b)] for a, b, c in actions]
            for a, b, c in actions:
                texts[c] += f"{name}  {a} {b}\n"
            database[name] = {
                "subset": "Test" if split == "test" else "Validation",
                "annotations": [{"label": c, "segment": [str(a), str(b)]} for a, b, c in actions],
            }
        _write_csv(root / f"{split}_video_info.csv", ["video", "fps", "sample_fps", "count", "sample_count"], infos)
        heads = ["video", "type", "type_idx", "start", "end", "startFrame", "endFrame"]
        _write_csv(root / f"{split}_Annotation_ours.csv", heads, rows)
        for label, text in texts.items():
            path = root / f"annotations_{split}" / f"{label}_{split}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    (root / "thumos_gt.json").write_text(json.dumps({"database": database}))
    return root


def _write_csv(path: Path, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([heads, *rows])


def make_own(
    root: Path,
    videos: int = 2,
    seconds: float = 14.0,
    fps: float = 10.0,
    classes: Sequence[str] = ("wave", "jump"),
    form: str = "activitynet",
    prefix: str = "",
    size: tuple[int, int] = (32, 48),
) -> Path:
    """Somebody's own data: `videos/*.mp4` and `annotations.json`, with `videos` files in each of two subsets.

    Args:
        form: of the JSON: "activitynet", "thumos" (times as text) or "actionformer" (with fps and label numbers).
        prefix: of the files' names alone; ActivityNet's files are `v_NAME.mp4`.
    """
    database: dict[str, Any] = {}
    for number, subset in enumerate(("training", "validation")):
        for i in range(videos):
            name, seed = f"{subset}_{i}", 10 * number + i
            actions = made_actions(seconds, seed, classes)
            pixels = frames_of(actions, round(seconds * fps), fps, size, seed, classes)
            write_video(root / "videos" / f"{prefix}{name}.mp4", pixels, fps)
            database[name] = {
                "subset": subset,
                "duration": seconds,
                **({"fps": fps} if form == "actionformer" else {}),
                "annotations": [_annotation(action, classes, form) for action in actions],
            }
    content = {"version": "VERSION 1.3", "database": database}
    (root / "annotations.json").write_text(json.dumps(content, indent=1))
    return root


def _annotation(action: tuple[float, float, str], classes: Sequence[str], form: str) -> dict[str, Any]:
    start, end, label = action
    segment: list[Any] = [str(start), str(end)] if form == "thumos" else [start, end]
    return {"label": label, "segment": segment} | ({"label_id": classes.index(label)} if form == "actionformer" else {})


def make_activitynet(root: Path, videos: int = 2, seconds: float = 14.0) -> Path:
    """ActivityNet's layout: `videos/v_NAME.mp4` of different rates, and `annotations.json` with NAME alone."""
    return make_own(root, videos, seconds, fps=15.0, classes=("Archery", "Ballet"), prefix="v_")


def make_kinetics(root: Path, videos: int = 2, frames: int = 24) -> Path:
    """Kinetics' layout: `videos/*.mp4`, and lists `train.txt` and `val.txt` of lines `FILE NUMBER`."""
    for number, split in enumerate(("train", "val")):
        lines = []
        for i in range(videos):
            label = i % 2
            path = root / "videos" / f"{split}_{i}.mp4"
            actions = [(0.0, frames / 10, CLASSES[label])]
            write_video(path, frames_of(actions, frames, size=(32, 48), seed=10 * number + i))
            lines.append(f"{path.name} {label}")
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


SMALL = dict(dims=(8, 8, 8, 16), depths=(1, 1, 1, 1), heads=(1, 1, 1, 1), drop_path=0.1)
"""Changes of the backbone for tests."""


def small(name: str, root: Path, *more: str, overlay: str | None = None, frames: int = 128) -> Any:
    """A config of the paper for clips of 32 x 32 pixels: two epochs of made data, a checkpoint after each.

    Args:
        name: path in the folder of configs. root: of the data. more: changes, as `--cfg-options` takes them.
        overlay: path of a config that goes over it. frames: of a clip; ActivityNet's form needs twice as many.
    """
    from paperkit.training.openmmlab import read_config
    from paperkit.training.runner import LOADERS, changed

    config = read_config(str(CONFIGS / name))
    if overlay:
        config.merge_from_dict(read_config(str(CONFIGS / overlay)).to_dict())
    if config.model.backbone.name != "i3d":
        config.model.backbone.update(SMALL)
    detecting = config.model.type == "STPTDetector"
    if detecting:
        config.model.detector.update(frames=frames, channels=16, groups=4)
    for loader in LOADERS:
        dataset = config[loader].dataset
        config[loader].update(num_workers=0, persistent_workers=False, batch_size=2)
        for step in dataset.pipeline:
            if "size" in step:
                step["size"] = 32
        dataset.update(dict(size=(36, 36)) if detecting else dict(short_side=34, clip_length=frames))
        dataset.data_root = str(root)
    for evaluator in (config.val_evaluator, config.test_evaluator):
        if detecting:
            evaluator.truth = str(root / Path(evaluator.truth).name)
    config.schedule.update(epochs=2, warmup=min(1, config.schedule.warmup))
    config.default_hooks.logger.interval = 1
    for hook in config.custom_hooks:
        if hook.type == "TimelineHook":
            hook.videos = 1
    return changed(config, more)


def write_small(path: Path, name: str, root: Path, *more: str, **options: Any) -> Path:
    """`small` as a file."""
    small(name, root, *more, **options).dump(str(path))
    return path


def run_of(folder: Path, name: str) -> Path:
    """The folder of a run."""
    return folder / "runs" / "stpt" / name


def weights(folder: Path, name: str, step: int = 0) -> dict[str, torch.Tensor]:
    """Of the last checkpoint, or of one."""
    steps = [int(path.stem.removeprefix("iter_")) for path in run_of(folder, name).glob("iter_*.pth")]
    path = run_of(folder, name) / f"iter_{step or max(steps)}.pth"
    return torch.load(path, weights_only=False)["state_dict"]  # it holds mmengine's log as well
