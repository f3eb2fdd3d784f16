"""Train STPT on videos: a config of mmengine (.py), run by its Runner.

Example: stpt train --config stpt/configs/thumos14/stpt.py --data.root DIR --amp
On your own videos: stpt train --config stpt/configs/own.py --data.annotations FILE.json --data.frames VIDEOS --amp
A config file is executed, so name only files that you trust. The run keeps the resolved config as data. Mixed precision
is bfloat16 on a GPU too.

Without a held-out part (`--data.hold_out`) the checkpoint of best mAP is chosen on the test videos; `eval --best` says
so beside its figure.
"""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paperkit.errors import UserError
from paperkit.files.runs import process_rank
from paperkit.training.runner import LOADERS, RunnerEngine

if TYPE_CHECKING:
    from stpt.training.annotations import Annotations

DETECTIONS = "detections.json"
"""What an evaluation found, in the form of ActivityNet's evaluator."""
JUDGED = "judged.json"
"""The truth and the rules of that evaluation: its `TADMetric`, as data."""
SPLIT = "annotations.json"
"""Of a run with a held-out part: the training videos in two subsets."""
TRAINED, HELD_OUT = "trained", "held out"
RULES: dict[str, dict[str, Any]] = {
    "config": {},
    "afsd": dict(rule="afsd", cut=False),
    "hard": dict(rule="hard"),
    "voting": dict(voting=0.9),
}
"""Ways to suppress detections of the same action, as changes of the config's."""


def add_arguments(parser: Any) -> None:
    """Every option of a run."""
    ENGINE.add_arguments(parser)
    add = parser.add_argument
    add("--data.root", type=str | None, default=None, help="folder of the data set, in place of the config's")
    own = "actions of your own videos, a file that `stpt annotations` reads, in place of the config's"
    add("--data.annotations", type=str | None, default=None, help=own)
    add("--data.frames", type=str | None, default=None, help="folder of videos, or what `stpt prepare` made of them")
    subsets = "subsets of those annotations to train and to test on; all for every video"
    add("--data.subsets", nargs=2, type=str, default=["training", "validation"], help=subsets)
    hold_out = "keep every N-th training video out, to choose the best checkpoint on; 0: none"
    add("--data.hold_out", type=int, default=0, help=hold_out)
    clips = "windows of each video, or the whole video as one clip; config: as the config says"
    add("--data.clips", type=Literal["config", "windows", "whole"], default="config", help=clips)
    missing, faults = "videos without frames", "training actions before, past or without time"
    add("--data.missing", type=Literal["refuse", "skip"], default="refuse", help=missing)
    add("--data.faults", type=Literal["refuse", "mend"], default="refuse", help=faults)


def add_evaluation_arguments(parser: Any) -> None:
    """What an evaluation may choose besides."""
    ENGINE.add_evaluation_arguments(parser)
    ways = "suppression: as the config has it, AFSD's released rule, hard NMS, or soft-NMS with score voting"
    parser.add_argument("--test", type=Literal[tuple(RULES)], default="config", help=ways)
    policy = "what counts as the truth on THUMOS14: AFSD's, or OpenTAD's, which leaves out two videos and duplicates"
    parser.add_argument("--policy", type=Literal["afsd", "opentad"], default="afsd", help=policy)
    named = "scores of a video classifier that names the actions of a detector of the one class action"
    parser.add_argument("--classifier", type=str | None, default=None, help=named)


def add_figure_arguments(parser: Any) -> None:
    """Of whose detections the figures are."""
    parser.add_argument("--videos", type=int, default=4, help="number of videos whose timelines are drawn")


def check(options: Any, run: Any) -> None:
    """Read the config, the annotations and the list of frames before there is a run folder.

    Raises:
        UserError: one of them is missing or wrong, or too few videos for a held-out part.
    """
    config = ENGINE.resolved(options, run)
    if run is not None:
        was = (run.read_config().get("data") or {}).get("hold_out", 0)
        if options.data.hold_out != was:
            raise UserError(f"a run keeps its held-out part: --data.hold_out was {was}, is {options.data.hold_out}")
    elif options.data.hold_out:
        split(config, options.data)


def train(run: Any, options: Any, resuming: bool) -> None:
    """Run mmengine's loop; the held-out part is drawn once, when the run begins."""
    if options.data.hold_out:
        from stpt.training.annotations import write_annotations

        path = run.path / SPLIT
        if not resuming:
            write_annotations(path, split(ENGINE.resolved(options, None), options.data))
        options.data.split = str(path.absolute())
    ENGINE.train(run, options, resuming)


def evaluate(run: Any, options: Any) -> None:
    """The figures of a run's newest or best checkpoint, or of --ckpt FILE; the detections are written beside them."""
    from paperkit.training.openmmlab import write_data

    flattered = options.best and run is not None and not (run.path / SPLIT).is_file()
    config = ENGINE.evaluate(run, options, remark(options, flattered))
    judged = config.test_evaluator
    if process_rank() == 0 and judged.type == "TADMetric":
        write_data(judged, Path(options.output) / JUDGED)
    if flattered:
        print(
            "best: chosen on the test videos themselves, which flatters; train with --data.hold_out N for an honest one"
        )


def remark(options: Any, flattered: bool) -> str:
    """What metrics.json says of an evaluation's figures beside the checkpoint's name."""
    parts = [
        ("chosen on the test videos", flattered),
        (f"--test {options.test}", options.test != "config"),
        (f"--policy {options.policy}", options.policy != "afsd"),
        (f"--classifier {options.classifier}", options.classifier is not None),
    ]
    return "".join(f", {words}" for words, said in parts if said)


def figures(run: Any, options: Any) -> list[Path]:
    """What an evaluation of a run found: timelines, precision along recall, AP by class, kinds of errors.

    Raises:
        UserError: a run that was not evaluated.
    """
    from paperkit.training.openmmlab import read_data
    from stpt.training.run_figures import draw_detections

    folder = Path(options.run if run is None else run.path)
    if not ((folder / DETECTIONS).is_file() and (folder / JUDGED).is_file()):
        raise UserError(f"{folder} has no {DETECTIONS}: evaluate it first (stpt eval --ckpt {folder})")
    judged = read_data(folder / JUDGED)
    return draw_detections(folder / DETECTIONS, judged, Path(options.output or folder / "figures"), options.videos)


def adapt(config: Any, options: Any) -> None:
    """A config by the options: whose data, how much of it, how it is judged; and epochs as numbers of iterations.

    Raises:
        UserError: data that cannot be read, or do not fit each other.
    """
    if not isinstance(config.get("model"), dict):
        raise UserError(f"the config has the model {str(config.get('model'))[:60]}; a mapping with its type is due")
    ours = [name for name in LOADERS if config.get(name) and config[name].dataset.type == "TADDataset"]
    for name in ("annotations", "frames") if ours else ():
        given = getattr(options.data, name)
        if given is not None:  # of a run, the last loader has it as it was given: a held-out part is not for it
            kept = config[ours[-1]].dataset
            setattr(options.data, name, place(given, kept.ann_file if name == "annotations" else kept.frames))
    for loader in ours:
        take_data(config, loader, options.data)
    if LOADERS[0] in ours:
        crops = {
            step["size"]: loader
            for loader in ours
            for step in config[loader].dataset.pipeline
            if step["type"] == "CropClip"
        }
        if len(crops) != 1:
            said = ", ".join(f"{size} in {loader}" for size, loader in crops.items())
            raise UserError(f"the network takes clips of one size, and CropClip has {said or 'none'}")
        config.size = config.model.size = [*crops] * 2
        config.fps = config.train_dataloader.dataset.fps  # what `stpt detect` reads a video at
    if hasattr(options, "test"):
        judge(config, options)
    else:
        count(config)


def take_data(config: Any, loader: str, data: Any) -> None:
    """Put a user's data in the place of the config's for one loader and its evaluator."""
    from stpt.training.annotations import read_annotations

    dataset, training = config[loader].dataset, loader == LOADERS[0]
    evaluator = None if training else config.get(f"{loader.split('_')[0]}_evaluator")
    if data.root is not None:
        old, dataset.data_root = dataset.data_root, data.root
        if evaluator is not None and Path(evaluator.truth).is_relative_to(old):
            evaluator.truth = str(Path(data.root) / Path(evaluator.truth).relative_to(old))
    if data.frames is not None:
        dataset.frames, dataset.table = data.frames, None
    if data.annotations is not None:
        subset = data.subsets[0 if training else 1]
        subset = None if subset == "all" else subset
        dataset.ann_file, dataset.subset = data.annotations, subset
        if evaluator is not None:
            evaluator.truth, evaluator.subset = dataset.ann_file, subset
        if not dataset.get("class_agnostic"):  # a run's classes stay in their order, whatever it is tested on
            classes = dataset.get("classes") or list(read_annotations(dataset.ann_file, faults="keep").classes)
            dataset.classes, config.model.detector.num_classes = classes, 1 + len(classes)
            if evaluator is not None:
                evaluator.classes = classes
    if data.clips != "config":
        dataset.clips = data.clips
    dataset.clip_length = config.model.detector.get("frames", 256)
    if not isinstance(dataset.clip_length, int) or dataset.clip_length < 1:
        raise UserError(f"model.detector.frames {dataset.clip_length!r}: give a whole number of 1 or more")
    whole = dataset.get("clips") == "whole"
    dataset.fps, dataset.max_frames = (None, dataset.clip_length) if whole else (dataset.get("fps") or 10.0, None)
    dataset.missing, dataset.faults = data.missing, data.faults
    if loader != LOADERS[2] and getattr(data, "split", None):
        dataset.ann_file, dataset.subset = data.split, TRAINED if training else HELD_OUT
        if evaluator is not None:
            for key in ("data_root", "frames", "table"):
                dataset[key] = config.train_dataloader.dataset.get(key)
            evaluator.truth, evaluator.subset = dataset.ann_file, dataset.subset


def place(given: str, kept: str) -> str:
    """The whole path of an option; `kept` if the run began in another folder, from which alone the option leads on."""
    path = Path(given)
    same = Path(kept).is_absolute() and Path(kept).parts[-len(path.parts) :] == path.parts
    return kept if same and not path.exists() else str(path.absolute())


def split(config: Any, data: Any) -> "Annotations":
    """The training videos in two subsets: every N-th by name is held out.

    Raises:
        UserError: fewer than N videos with actions, or N below 2.
    """
    from stpt.training.annotations import read_annotations

    dataset = config.train_dataloader.dataset
    if data.hold_out < 2:
        raise UserError(f"--data.hold_out {data.hold_out} would keep every video out; give 2 or more, or 0")
    path = Path(dataset.get("data_root") or "") / dataset.ann_file
    known = read_annotations(path, dataset.get("subset"), dataset.get("classes"), data.faults)
    names = sorted(name for name, video in known.videos.items() if video.actions)
    held = set(names[data.hold_out - 1 :: data.hold_out])
    if not held:
        raise UserError(f"--data.hold_out {data.hold_out} of {len(names)} training videos keeps none out")
    subsets = {name: HELD_OUT if name in held else TRAINED for name in known.videos}
    videos = {name: replace(video, subset=subsets[name]) for name, video in known.videos.items()}
    return replace(known, videos=videos)


def judge(config: Any, options: Any) -> None:
    """An evaluation's own choices."""
    if config.test_evaluator.type != "TADMetric":
        return
    metric = config.test_evaluator
    metric.post = {**metric.get("post", {}), **RULES[options.test]}
    metric.policy, metric.classifier = options.policy, options.classifier
    metric.output = str(Path(options.output) / DETECTIONS)


def count(config: Any) -> None:
    """Fill in the numbers of iterations: a step is a batch of every process; intervals are whole updates."""
    from paperkit.training.openmmlab import own_scope

    clips = len(own_scope("stpt").DATASETS.build(dict(config.train_dataloader.dataset, pipeline=[])))
    alone = config.launcher == "none"
    processes = 1 if alone else int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    plan, each = config.schedule, config.optim_wrapper.get("accumulative_counts", 1)
    given = {"schedule.epochs": plan.epochs, "train_dataloader.batch_size": config.train_dataloader.batch_size,
             "optim_wrapper.accumulative_counts": each}  # fmt: skip
    if wrong := [name for name, value in given.items() if not isinstance(value, int) or value < 1]:
        raise UserError(f"{wrong[0]} {given[wrong[0]]!r}: give a whole number of 1 or more")
    epoch = math.ceil(math.ceil(clips / (config.train_dataloader.batch_size * processes)) / each) * each
    if plan.get("warmup", 0) >= plan.epochs:
        raise UserError(
            f"a warm-up of {plan.warmup} epochs in a run of {plan.epochs}; --cfg-options schedule.warmup=0 has none"
        )
    total, warm = plan.epochs * epoch, plan.get("warmup", 0) * epoch
    config.train_cfg.update(max_iters=total, val_interval=epoch)
    config.default_hooks.checkpoint.interval = epoch
    config.param_scheduler = []
    if warm:
        rise = dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=warm)
        config.param_scheduler.append(rise)
    if plan.get("minimum") is not None:
        fall = dict(type="CosineAnnealingLR", eta_min=plan.minimum, by_epoch=False, begin=warm, end=total)
        config.param_scheduler.append(dict(fall, T_max=total - warm))


ENGINE = RunnerEngine(
    paper="stpt",
    kept="detection.json",
    registers=(
        "paperkit.training.openmmlab",
        "stpt.models.mm_classifier",
        "stpt.models.mm_detector",
        "stpt.training.clips",
        "stpt.training.datasets",
        "stpt.training.metric",
        "stpt.training.optimizer_constructor",
        "stpt.training.progress_hook",
        "stpt.training.timeline_hook",
    ),
    scopes=("stpt", "mmaction", "mmengine"),
    metric="mAP",
    adapt=adapt,
    bfloat16=True,  # distances are exponentials
)
