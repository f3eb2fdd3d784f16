"""Semantic FPN through mmsegmentation's own entry points, on a made folder of ADE20K's layout."""

import shutil
from pathlib import Path

import pytest
import torch
from made import CONFIGS, make_ade20k
from made import small_segmentation as small
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules

from litv2.commands.eval import evaluate_segmentation
from litv2.models.backbone import LITv2Backbone
from litv2.models.detectors import load_backbone
from litv2.training.segmentation import main as train_main
from litv2.training.segmentation import newest_whole, read_config, train
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder


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
    body = LITv2Backbone(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8))
    load_backbone(body, whole.path / "iter_4.pth")  # a run's file starts a detector as a released one does
    assert torch.equal(body.norm3.weight, weights(whole.path / "iter_4.pth")["backbone.norm3.weight"])
    torch.rand(7)  # another random state
    train(small("semantic_fpn_litv2_s.py", root), cut, resume=True)
    first, second = weights(whole.path / "iter_4.pth"), weights(cut.path / "iter_4.pth")
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    started = weights(whole.path / "iter_2.pth")
    assert any(not torch.equal(first[key], started[key]) for key in first)


@pytest.mark.parametrize(("size", "path"), [("s", 0.2), ("m", 0.2), ("b", 0.3)])
def test_recipe_of_the_specification(size: str, path: float) -> None:
    config = read_config(str(CONFIGS / "ade20k" / f"semantic_fpn_litv2_{size}.py"), ["model.backbone.pretrained=None"])
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
