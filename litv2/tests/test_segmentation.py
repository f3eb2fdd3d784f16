"""Semantic FPN through mmsegmentation's own entry points, on a made folder of ADE20K's layout."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
from PIL import Image

from litv2.backbone import LITv2Backbone
from litv2.commands.eval import evaluate_segmentation
from litv2.commands.train_segmentation import main as train_main
from litv2.commands.train_segmentation import newest_whole, read_config, train
from paperkit.errors import UserError
from paperkit.runs import RunFolder

CONFIGS = Path(__file__).parents[1] / "configs" / "ade20k"
SHRINK = ["model.backbone.embed_dim=16", "model.backbone.depths=[1,1,2,1]", "model.backbone.num_heads=[1,2,4,8]",
          "model.backbone.pretrained=null", "model.neck.in_channels=[16,32,64,128]", "model.neck.out_channels=32",
          "model.decode_head.in_channels=[32,32,32,32]", "model.decode_head.channels=16"]  # fmt: skip


def make_ade20k(root: Path, count: int = 3) -> Path:
    generator = np.random.default_rng(0)
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 255, (70, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / split / f"{i}.jpg")
            Image.fromarray((pixels[..., 0] // 64).astype(np.uint8)).save(root / "annotations" / split / f"{i}.png")
    return root


def small(name: str, root: Path, *more: str):
    config = read_config(str(CONFIGS / name), [*SHRINK, f"data_root={root}", *more])
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


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=False)["state_dict"]


def test_trains_validates_and_resumes_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_ade20k(tmp_path / "ade")
    whole = RunFolder.create(tmp_path / "runs", "litv2", "whole")
    runner = train(small("semantic_fpn_litv2_s.py", root), whole, resume=False)
    assert "mIoU" in runner.message_hub.log_scalars or any("mIoU" in k for k in runner.message_hub.log_scalars)
    cut = RunFolder.create(tmp_path / "runs", "litv2", "cut")
    shutil.copy(whole.path / "iter_2.pth", cut.path / "iter_2.pth")
    (cut.path / "iter_4.pth").write_bytes((whole.path / "iter_4.pth").read_bytes()[:1000])  # torn: must be passed over
    assert newest_whole(cut.path).name == "iter_2.pth"
    small("semantic_fpn_litv2_s.py", root).dump(str(whole.path / "segmentation.py"))
    assert evaluate_segmentation(whole.path) == 0 and "mIoU" in capsys.readouterr().out
    torch.rand(7)  # another random state
    train(small("semantic_fpn_litv2_s.py", root), cut, resume=True)
    first, second = weights(whole.path / "iter_4.pth"), weights(cut.path / "iter_4.pth")
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    started = weights(whole.path / "iter_2.pth")
    assert any(not torch.equal(first[key], started[key]) for key in first)


@pytest.mark.parametrize(("size", "path"), [("s", 0.2), ("m", 0.2), ("b", 0.3)])
def test_recipe_of_the_specification(size: str, path: float) -> None:
    config = read_config(str(CONFIGS / f"semantic_fpn_litv2_{size}.py"), ["model.backbone.pretrained=null"])
    assert config.optim_wrapper.optimizer == dict(type="AdamW", lr=1e-4, weight_decay=1e-4)
    assert config.param_scheduler[0].power == 0.9 and config.param_scheduler[0].eta_min == 1e-6
    assert config.train_cfg.max_iters == 80000 and config.train_dataloader.batch_size == 2
    assert config.model.backbone.drop_path_rate == path
    register_all_modules()
    with torch.device("meta"):
        model = MODELS.build(config.model)
    assert isinstance(model.backbone, LITv2Backbone) and model.backbone.out_norms == (0, 1, 2, 3)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions == pytest.approx({"s": 31.45, "m": 52, "b": 90}[size], abs=0.5)


def test_missing_data_and_config_are_one_line(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs", "litv2", "none")
    with pytest.raises(UserError, match=r"no ADE20K files in .*images/training; the data root must hold"):
        train(small("semantic_fpn_litv2_s.py", tmp_path / "nowhere"), run, resume=False)
    with pytest.raises(UserError, match=r"no config at nothing\.py"):
        train_main(["nothing.py", "--root", str(tmp_path / "runs")], "litv2 train")
