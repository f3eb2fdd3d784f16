"""Short runs of the three engines on made data, and the command: in this process or in one of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from litv2.cli import VERBS
from litv2.training.segmentation import read_config
from paperkit.command.cli import main
from paperkit.testing.made_images import make_image_folder

CONFIGS = Path(__file__).parents[1] / "configs"
SHRINK: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]}
SMALL_SEGMENTER = ["model.backbone.embed_dim=16", "model.backbone.depths=[1,1,2,1]",
                   "model.backbone.num_heads=[1,2,4,8]", "model.backbone.pretrained=None",
                   "model.neck.in_channels=[16,32,64,128]", "model.neck.out_channels=32",
                   "model.decode_head.in_channels=[32,32,32,32]", "model.decode_head.channels=16"]  # fmt: skip


def here(*words: str | Path) -> int:
    """The verb in this process (no import to pay again); its exit code."""
    os.environ.pop("PAPERKIT_RUN", None)
    return main("litv2", "LITv2", VERBS, [str(word) for word in words])


def launch(words: list[str], cwd: Path, code: int, **options: Any) -> subprocess.CompletedProcess[str]:
    """A process of its own, which must end with ``code``."""
    # with compiled modules kept, as a user's shell has it: a second process starts in a third of the time
    left_out = ("PAPERKIT_", "PYTHONDONTWRITEBYTECODE")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
    environment |= {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, env=environment, timeout=400, **options)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def command(*words: str | Path, cwd: Path, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """The console script."""
    return launch([str(Path(sys.executable).parent / "litv2"), *map(str, words)], cwd, code, **options)


def killed(patch: str, *words: str | Path, cwd: Path) -> None:
    """The command with a few lines run before it, which kill -9 its process at an exact point; checks that they did."""
    arguments = ["litv2", *map(str, words)]
    script = f"import os, signal, sys\n{patch}\nfrom litv2.cli import main\nsys.argv = {arguments!r}\nmain()\n"
    launch([sys.executable, "-c", script], cwd, code=-9)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said of an error: one line on stderr."""
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def make_coco(root: Path, count: int = 4) -> Path:
    """COCO's layout: images with one bright box each, of category cat or dog."""
    generator = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        images, objects = [], []
        for i in range(count):
            pixels = generator.integers(0, 90, (80, 100, 3), dtype=np.uint8)
            left, top, width, height = 10 + 5 * i, 20, 30, 25
            pixels[top : top + height, left : left + width, i % 2] = 255
            Image.fromarray(pixels).save(root / split / f"{i}.jpg")
            images.append(dict(id=i + 1, file_name=f"{i}.jpg", height=80, width=100))
            corners = [left, top, left + width, top, left + width, top + height, left, top + height]
            objects.append(dict(id=i + 1, image_id=i + 1, category_id=[17, 18][i % 2], bbox=[left, top, width, height],
                                area=width * height, iscrowd=0, segmentation=[corners]))  # fmt: skip
        categories = [dict(id=17, name="cat"), dict(id=18, name="dog")]
        content = dict(images=images, annotations=objects, categories=categories)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


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
    config = read_config(str(CONFIGS / "ade20k" / name), [*SMALL_SEGMENTER, f"data_root={root}", *more])
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
    content["recipe"].update(epochs=2, warmup_epochs=1)
    content["trainer"].update(precision="32-true", accelerator="cpu", devices=1, enable_progress_bar=False)
    content["save_every"] = 1
    return write_yaml(folder / "images.yaml", content)


def write_detection(folder: Path, name: str = "retinanet_litv2_s_ws2") -> Path:
    """Four steps in two epochs on a made COCO folder."""
    content = yaml.safe_load((CONFIGS / "coco" / f"{name}.yaml").read_text())
    content["detection"].update(weights=None, min_size=64, max_size=96, epochs=2, options=SHRINK)
    content["data"].update(root=str(make_coco(folder / "coco")), num_workers=0, batch_size=2)
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
