"""Train FASeg on real pictures: a config of mmsegmentation (.py), run by mmengine's Runner.

Example: faseg train --config faseg/configs/ade20k/faseg_r50.py --data.root DIR --amp
On your own pictures: the same with --data.kind folder; DIR holds the folders train and val, their label maps in
trainannot and valannot (grey or palette PNG of the same names), and classes.txt of one name a line.
A config file is executed, so name only files that you trust. The run keeps the resolved config as data.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paperkit.errors import UserError
from paperkit.training.runner import LOADERS, RunnerEngine

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "val", "test")
"""Of the loaders in their order; a folder without test pictures is tested on val."""


def _weights(path: str) -> "dict[str, Tensor]":
    """Of mmsegmentation's network: from a checkpoint of mmengine, or a file of the authors under their names."""
    from mmengine.runner.checkpoint import get_torch_safe_globals

    from faseg.models.released import modern_names
    from paperkit.files.weights import read_weights

    theirs = {"sem_seg_head.": "decode_head.", "criterion.": "decode_head.criterion."}
    state = modern_names(read_weights(path, allow=get_torch_safe_globals(), advice=None))
    for old, new in theirs.items():
        state = {new + key.removeprefix(old) if key.startswith(old) else key: value for key, value in state.items()}
    return state


def add_arguments(parser: Any) -> None:
    """Every option of a run."""
    ENGINE.add_arguments(parser)
    kinds = "config (what the config names), or folder: train, val, trainannot, valannot, classes.txt"
    parser.add_argument("--data.kind", type=Literal["config", "folder"], default="config", help=kinds)
    parser.add_argument("--data.root", type=str | None, default=None, help="folder of the data, for the config's own")
    parser.add_argument("--data.classes", type=str, default="classes.txt", help="names of a folder's classes, in it")
    nothing = "numbers of a folder's labels besides 255 that stand for nothing, one after another"
    parser.add_argument("--data.void", nargs="*", type=int, default=[], help=nothing)


def add_evaluation_arguments(parser: Any) -> None:
    """What an evaluation may choose besides."""
    ENGINE.add_evaluation_arguments(parser)
    ways = (
        "whole pictures; slide: windows of the training crop, a third of it shared; multi_scale: 6 sizes, mirrored too"
    )
    parser.add_argument("--test", type=Literal["whole", "slide", "multi_scale"], default="whole", help=ways)


def add_figure_arguments(parser: Any) -> None:
    """What the figures of a network are drawn on."""
    parser.add_argument("--image", type=str | None, default=None, help="picture file")


def figures(run: Any, options: Any) -> list[Path]:
    """What a run's network, or that of a folder or file, does on one picture.

    Raises:
        UserError: no picture is named, or it or the weights cannot be read.
    """
    import numpy as np
    import torch
    from PIL import Image

    from faseg.figures.of_a_network import draw_network
    from faseg.models.conversion import load_network
    from faseg.training.shortest_edge import resized_shape
    from paperkit.data.pictures import read_picture

    source = Path(options.run if run is None else run.path)
    if options.image is None:
        raise UserError(f"{source} segments pictures: its figures need --image FILE")
    network, picture = load_network(source), read_picture(options.image)
    rows, columns = resized_shape(picture.height, picture.width, network.shortest, network.longest)
    pixels = np.array(picture.resize((columns, rows), Image.Resampling.BILINEAR))
    folder = source if source.is_dir() else source.parent
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    return draw_network(network, image, Path(options.output or folder / "figures"))


def adapt(config: Any, options: Any) -> None:
    """A config by the options: whose data, how it is tested; the rate falls over whatever number of iterations.

    Raises:
        UserError: a folder without what it must hold.
    """
    import torch

    if options.data.kind == "folder":
        _take_folder(config, options.data.root, options.data.classes, options.data.void)
    elif options.data.root is not None:
        for loader in LOADERS:
            config[loader].dataset.data_root = options.data.root
    for schedule in config.param_scheduler:
        schedule["end"] = config.train_cfg.max_iters + 1
    if config.model.get("backbone", {}).get("norm") == "SyncBN" and not torch.cuda.is_available():
        config.model.backbone.norm = "BN"  # CPUs have no other
    way = getattr(options, "test", "whole")
    if way == "slide":
        crops = [step["crop_size"] for step in config.train_dataloader.dataset.pipeline if "crop_size" in step]
        stride = tuple(side * 2 // 3 for side in crops[0])
        config.model.test_cfg = dict(mode="slide", crop_size=tuple(crops[0]), stride=stride)
    elif way == "multi_scale":
        config.model = dict(config.tta_model, module=config.model)
        config.test_dataloader.dataset.pipeline = config.tta_pipeline


def _take_folder(config: Any, root: str | None, classes: str, void: Sequence[int]) -> None:
    """A folder's pictures in place of the config's, through the config's pipelines."""
    from paperkit.data.label_maps import class_names

    if root is None:
        raise UserError("--data.kind folder needs its folder: --data.root DIR")
    names = class_names(Path(root) / classes)
    for loader, split in zip(LOADERS, SPLITS, strict=True):
        old = config[loader].dataset
        part = split if split != "test" or (Path(root) / split).is_dir() else "val"
        prefix = dict(img_path=part, seg_map_path=f"{part}annot")
        seed = dict(seed=old.seed) if "seed" in old else {}
        config[loader] = {**config[loader], "dataset": dict(
            type="SeededFolder", classes=list(names), void=list(void), data_root=root, data_prefix=prefix,
            pipeline=old.pipeline, **seed,
        )}  # fmt: skip
    config.model.decode_head.num_classes = len(names)


ENGINE = RunnerEngine(
    paper="faseg",
    kept="segmentation.json",
    registers=(
        "faseg.models.mm_head",
        "faseg.training.labelled_iou",
        "faseg.training.multi_scale",
        "faseg.training.optimizer_constructor",
        "faseg.training.shortest_edge",
        "paperkit.training.mmseg_data",
    ),
    scopes=("mmseg", "mmengine"),
    read_start=_weights,
    adapt=adapt,
)
check, train, evaluate = ENGINE.check, ENGINE.train, ENGINE.evaluate
