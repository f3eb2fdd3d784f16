"""Semantic FPN through mmsegmentation's own entry points, on a made folder of ADE20K's layout."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from made import CONFIGS, LITV2, EngineCases, World, full_disk, write_segmentation  # noqa: F401
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules

from litv2.models.backbone import LITv2Backbone
from litv2.models.detectors import load_backbone
from litv2.models.released import read_released
from paperkit.errors import UserError
from paperkit.results.metrics import Metrics
from paperkit.training.openmmlab import newest_whole, read_config, read_data, write_data
from paperkit.training.runner import changed


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("segmentation")
    step, data = "paperkit.training.openmmlab:SeedIteration.before_train_iter", ["--cfg-options", "data_root="]
    diverge = ["--cfg-options", "optim_wrapper.optimizer.lr=1e30"]
    config, kill = write_segmentation(folder), ("mmseg.evaluation.metrics.iou_metric:IoUMetric.process", 1)
    return World(folder, config, step, kill, "iter_4.pth", data, "the data root must hold", diverge)


class TestEngine(EngineCases):
    """Of segmentation."""

    # mmengine writes the time and the place into these, and TensorBoard's last lines are lost with the process
    not_compared = ("*.py", "iter_*.pth", "best_*.pth", "*events.out*")


def test_a_run_evaluates(world: World) -> None:
    assert "mIoU" in LITV2.here("eval", "--ckpt", world.run("whole"), cwd=world.folder).out
    assert Metrics.read(world.run("whole") / "metrics.json").row("last", "mIoU").unit == "%"
    said = LITV2.here("eval", "--ckpt", world.run("whole"), "--best", "--output", "best", cwd=world.folder).out
    assert "best_mIoU_iter_4.pth" in said
    assert Metrics.read(world.folder / "best" / "metrics.json").row("best", "mIoU").unit == "%"


def test_a_torn_checkpoint_is_passed_over(world: World) -> None:
    """The run goes on from the one before it, to the same weights."""
    whole, torn = world.run("whole"), world.run("torn")
    shutil.copytree(whole, torn)
    (torn / "finished").unlink()
    (torn / "iter_4.pth").write_bytes((whole / "iter_4.pth").read_bytes()[:1000])
    assert newest_whole(torn) == torn / "iter_2.pth"
    LITV2.here("train", "--resume", "torn", cwd=world.folder)
    first, second, started = world.weights("whole"), world.weights("torn"), read_released(whole / "iter_2.pth")
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert any(not torch.equal(value, started[key]) for key, value in first.items())


def test_a_runs_file_starts_a_detector(world: World) -> None:
    body = LITv2Backbone(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8))
    load_backbone(body, world.run("whole") / "iter_4.pth")  # as a released one does
    assert torch.equal(body.norm3.weight, world.weights("whole")["backbone.norm3.weight"])


PYTHON = "open('ran', 'w').close()\n"
EVIL = [
    ("code", lambda config: None),
    ("type", lambda config: config["model"].update(type="builtins.open", file="ran", mode="w")),
    ("module", lambda config: config["custom_hooks"].append({"type": "evil"})),
    ("package", lambda config: config["custom_hooks"].append({"type": "mmengine.mkdir_or_exist", "dir_name": "ran"})),
    ("hook", lambda config: config["custom_hooks"].append({"type": "os.mkdir", "path": "ran"})),
    ("constructor", lambda config: config["optim_wrapper"].update(constructor="evil.Constructor")),
    ("scope", lambda config: config.update(default_scope="evil")),
    ("base", lambda config: config.update(_base_=["evil.py"], custom_imports={"imports": ["evil"]})),
]


@pytest.mark.parametrize(("name", "alter"), EVIL, ids=[name for name, _ in EVIL])
@pytest.mark.parametrize("verb", ["eval", "train"])
def test_nothing_in_a_run_folder_is_executed(
    verb: str, name: str, alter: Any, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python beside the config, types that are paths to code, base files and imports."""
    run = tmp_path / "runs" / "litv2" / "evil"
    shutil.copytree(world.run("whole"), run)
    for file in (run / "segmentation.py", run / "evil.py", tmp_path / "evil.py", tmp_path / "segmentation.py"):
        file.write_text(PYTHON)
    config = json.loads((run / "segmentation.json").read_text())
    alter(config)
    (run / "segmentation.json").write_text(json.dumps(config))
    monkeypatch.syspath_prepend(tmp_path)
    if verb == "train":
        (run / "finished").unlink()
    words = ["--ckpt", run] if verb == "eval" else ["--resume", "evil"]
    LITV2.here(verb, *words, cwd=tmp_path, code=0 if name in ("code", "base") else 1)
    assert not (tmp_path / "ran").exists()


def test_a_config_survives_as_data(tmp_path: Path) -> None:
    """Tuples stay tuples, which mmcv asks for; what is no plain value is refused."""
    config = read_config(str(CONFIGS / "ade20k" / "semantic_fpn_litv2_b.py"))
    write_data(config, tmp_path / "c.json")
    assert read_data(tmp_path / "c.json").to_dict() == config.to_dict()
    assert isinstance(read_data(tmp_path / "c.json").model.data_preprocessor.size, tuple)
    config.model.act = print
    with pytest.raises(UserError, match="the config holds <built-in function print>"):
        write_data(config, tmp_path / "c.json")
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(UserError, match="is a list, not a mapping"):
        read_data(tmp_path / "c.json")


def test_a_config_of_before_is_read(tmp_path: Path) -> None:
    """Its `custom_imports` name a module of this package, where now is paperkit's."""
    path = write_segmentation(tmp_path)
    text = path.read_text()
    assert "paperkit.training.mmseg_data" in text
    path.write_text(text.replace("paperkit.training.mmseg_data", "litv2.training.openmmlab"))
    assert read_config(str(path)).train_dataloader.dataset.type == "SeededADE20K"


@pytest.mark.parametrize(("size", "path"), [("s", 0.2), ("m", 0.2), ("b", 0.3)])
def test_recipe_as_published(size: str, path: float) -> None:
    config = read_config(str(CONFIGS / "ade20k" / f"semantic_fpn_litv2_{size}.py"))
    changed(config, ["model.backbone.pretrained=None"])
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


def test_config_is_needed(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("model = dict(")
    line = LITV2.refused("train", "--engine", "segmentation", cwd=tmp_path)
    assert "no config: name a Python file of mmengine with --config" in line
    assert "nothing.py" in LITV2.refused("train", "--config", "nothing.py", cwd=tmp_path)
    assert "broken.py is no mmengine config" in LITV2.refused("train", "--config", "broken.py", cwd=tmp_path)
    assert not (tmp_path / "runs").exists()
