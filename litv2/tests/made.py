"""Short runs of the three engines on made data, what must hold of each, and the command itself."""

import contextlib
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor

from paperkit.command.cli import make_parser
from paperkit.files.weights import read_weights
from paperkit.testing.commands import Command, Ended, at_call
from paperkit.testing.made_images import make_coco, make_image_folder
from paperkit.testing.runs import check_same_runs
from paperkit.training.openmmlab import read_config
from paperkit.training.runner import changed

CONFIGS = Path(__file__).parents[1] / "configs"
SHRINK: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]}
SMALL_SEGMENTER = ["model.backbone.embed_dim=16", "model.backbone.depths=[1,1,2,1]",
                   "model.backbone.num_heads=[1,2,4,8]", "model.backbone.pretrained=None",
                   "model.neck.in_channels=[16,32,64,128]", "model.neck.out_channels=32",
                   "model.decode_head.in_channels=[32,32,32,32]", "model.decode_head.channels=16"]  # fmt: skip


LITV2 = Command("litv2", "litv2.cli:main", preload=("litv2.training.images", "litv2.experiment.run"))


def book_hilo(layer: Any, x: Tensor) -> Tensor:
    """HiLo by the equations of section 3.2, one window and one head at a time: (B, H, W, D) -> (B, H, W, D)."""
    batch, height, width, _ = x.shape
    s, d = layer.window_size, layer.head_dim
    x = F.pad(x, (0, 0, 0, -width % s, 0, -height % s))
    rows, columns = x.shape[1:3]
    parts = []
    if layer.h_heads:
        q, k, v = layer.h_qkv(x).chunk(3, dim=-1)
        windows = []
        for i in range(0, rows, s):
            line = []
            for j in range(0, columns, s):
                heads = []
                for h in range(layer.h_heads):
                    place = (slice(None), slice(i, i + s), slice(j, j + s), slice(h * d, h * d + d))
                    qw, kw, vw = (t[place].reshape(batch, -1, d) for t in (q, k, v))
                    heads.append(((qw @ kw.mT * layer.scale).softmax(-1) @ vw).view(batch, s, s, d))
                line.append(torch.cat(heads, dim=-1))
            windows.append(torch.cat(line, dim=2))
        parts.append(layer.h_proj(torch.cat(windows, dim=1)))
    if layer.l_heads:
        pooled = torch.stack([
            torch.stack([x[:, i : i + s, j : j + s].mean((1, 2)) for j in range(0, columns, s)], 1)
            for i in range(0, rows, s)
        ], 1).flatten(1, 2)  # fmt: skip
        q, (k, v) = layer.l_q(x).flatten(1, 2), layer.l_kv(pooled).chunk(2, dim=-1)
        heads = [
            (q[..., c] @ k[..., c].mT * layer.scale).softmax(-1) @ v[..., c]
            for c in (slice(h * d, h * d + d) for h in range(layer.l_heads))
        ]
        parts.append(layer.l_proj(torch.cat(heads, -1).view(batch, rows, columns, -1)))
    return torch.cat(parts, -1)[:, :height, :width]


def options_of(engine: ModuleType, config: Path) -> Any:
    """What a config file gives to an engine."""
    parser = make_parser("litv2 train")
    parser.add_argument("--config", action="config")
    parser.add_argument("--engine", type=str)
    engine.add_arguments(parser)
    return parser.instantiate_classes(parser.parse_args(["--config", str(config)]))


def make_ade20k(root: Path, count: int = 3) -> Path:
    """ADE20K's layout: noise, labelled by its own brightness."""
    generator = np.random.default_rng(0)
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 255, (70, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / split / f"{i}.jpg")
            Image.fromarray((pixels[..., 0] // 64).astype(np.uint8)).save(root / "annotations" / split / f"{i}.png")
    return root


def small_segmentation(name: str, root: Path, *more: str) -> Any:
    """A config of the paper on 64-pixel crops: four iterations, a checkpoint after every second."""
    config = changed(read_config(str(CONFIGS / "ade20k" / name)), [*SMALL_SEGMENTER, f"data_root={root}", *more])
    config.train_pipeline = None
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        config[loader].num_workers = 0
        for step in config[loader].dataset.pipeline:
            if "scale" in step:
                step["scale"] = (128, 64)
            if "crop_size" in step:
                step["crop_size"] = (64, 64)
    config.model.data_preprocessor.size = (64, 64)
    config.train_cfg.update(max_iters=4, val_interval=4)
    config.default_hooks.checkpoint.interval = 2
    config.default_hooks.logger.interval = 1
    return config


def write_images(folder: Path) -> Path:
    """Four steps in two epochs, under the paper's augmentation, mixing and drop path."""
    make_image_folder(folder / "images", per_class=4)
    content = yaml.safe_load((CONFIGS / "imagenet" / "litv2_s.yaml").read_text())
    content["network"]["options"] = {**SHRINK, "drop_path_rate": 0.2}
    content["data"].update(root=str(folder / "images"), batch_size=4, num_workers=0, num_classes=2, input_size=64)
    content["recipe"].update(epochs=2, warmup_epochs=0, lr=0.1)  # a rate that moves the weights in four steps
    content["trainer"].update(precision="32-true", accelerator="cpu", devices=1, enable_progress_bar=False)
    content["save_every"] = 1
    return write_yaml(folder / "images.yaml", content)


def write_detection(folder: Path, name: str = "retinanet_litv2_s_ws2", count: int = 4, epochs: int = 2) -> Path:
    """Two steps an epoch on a made COCO folder."""
    content = yaml.safe_load((CONFIGS / "coco" / f"{name}.yaml").read_text())
    content["detection"].update(weights=None, min_size=64, max_size=96, epochs=epochs, options=SHRINK)
    content["data"].update(root=str(make_coco(folder / "coco", count)), num_workers=0, batch_size=2)
    content["trainer"] = dict(accelerator="cpu", devices=1, enable_progress_bar=False)
    content["save_every"] = 1
    return write_yaml(folder / "detection.yaml", content)


def write_segmentation(folder: Path) -> Path:
    """Four iterations on a made ADE20K folder."""
    path = folder / "segmentation.py"
    small_segmentation("semantic_fpn_litv2_s.py", make_ade20k(folder / "ade")).dump(str(path))
    return path


def write_yaml(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


class World:
    """One engine's data, config, and a run that nobody interrupted; four steps in two epochs.

    Args:
        folder: for everything.
        config: of the engine, with its data in `folder`.
        step: the function, as `paperkit.testing.commands.at_call` takes it, that begins a step.
        kill: the function at whose call of that number the run is killed.
        weights: file of the last weights in a run.
        data: option that names another data folder.
        lacking: what is said of a data folder that is not there.
        diverge: options of a run whose loss is no number.
    """

    def __init__(
        self,
        folder: Path,
        config: Path,
        step: str,
        kill: tuple[str, int],
        weights: str,
        data: list[str],
        lacking: str,
        diverge: list[str],
    ) -> None:
        self.folder, self.config, self.step, self.kill, self.file = folder, config, step, kill, weights
        self.data, self.lacking, self.diverge = data, lacking, diverge
        self.train("--name", "whole")

    def train(self, *words: str | Path, code: int = 0) -> Ended:
        """The engine's command on this config."""
        return LITV2.here("train", "--config", self.config, *words, cwd=self.folder, code=code)

    def run(self, name: str) -> Path:
        """A run's folder."""
        return self.folder / "runs" / "litv2" / name

    def weights(self, name: str) -> dict[str, Tensor]:
        """The last weights of a run."""
        path = self.run(name) / self.file
        if path.suffix == ".pth":  # mmengine's files hold its log beside the weights
            return torch.load(path, weights_only=False)["state_dict"]
        return read_weights(path)


class EngineCases:
    """What must hold of every engine; a test file of one engine has a class with this one as its base, and `world`.

    Attributes:
        not_compared: files of a resumed run that may be others than an uninterrupted one's.
    """

    not_compared: tuple[str, ...] = ()

    def test_killed_and_resumed_gives_the_same_run(self, world: World) -> None:
        """Killed where most is at stake: the last step of an epoch is saved, and what it is worth is not known yet."""
        words = ["train", "--config", world.config, "--name", "cut"]
        LITV2.child(*words, cwd=world.folder, patch=at_call(*world.kill), code=-9)
        self.goes_on(world, "cut")

    def test_ended_by_a_signal_and_moved_gives_the_same_run(self, world: World) -> None:
        """SIGTERM in the last step of the first epoch; the run goes on under another name."""
        words = ["train", "--config", world.config, "--name", "ended"]
        LITV2.child(*words, cwd=world.folder, patch=at_call(world.step, 2, signal.SIGTERM), code=143)
        world.run("ended").rename(world.run("moved"))
        self.goes_on(world, "moved")

    def goes_on(self, world: World, name: str) -> None:
        """To the end, with the weights and all else of the uninterrupted run."""
        assert not (world.run(name) / "finished").exists()
        LITV2.child("train", "--resume", name, cwd=world.folder, patch="import torch; torch.rand(7)")
        assert (world.run(name) / "finished").exists()
        whole, cut = world.weights("whole"), world.weights(name)
        assert whole.keys() == cut.keys() and all(torch.equal(value, cut[key]) for key, value in whole.items())
        check_same_runs(world.run("whole"), world.run(name), self.not_compared)

    def test_full_disk_is_one_line_and_costs_nothing(self, world: World, full_disk: None) -> None:
        line = world.train("--name", "full", code=1).line
        assert line.startswith("error: cannot write") and "File too large" in line
        assert not list(world.run("full").rglob("*.tmp-*")) and not (world.run("full") / "finished").exists()

    def test_a_loss_that_is_no_number_is_one_line(self, world: World) -> None:
        line = world.train("--name", "nan", *world.diverge, code=1).line
        assert "not finite at" in line and "last good checkpoint: " in line

    def test_missing_data_are_one_line(self, world: World) -> None:
        line = world.train("--name", "none", *world.data[:-1], f"{world.data[-1]}nowhere", code=1).line
        assert "nowhere" in line and world.lacking in line

    def test_a_run_belongs_to_its_engine(self, world: World) -> None:
        assert "is finished" in LITV2.refused("train", "--resume", "whole", cwd=world.folder)
        line = LITV2.refused("eval", "--ckpt", world.run("whole"), "--engine", "digits", cwd=world.folder)
        assert "--engine digits asks for digits" in line


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 200 kB, which a write notices as it notices a full disk."""
    with limited_disk(200_000):
        yield


@contextlib.contextmanager
def limited_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes; -1 is no limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
