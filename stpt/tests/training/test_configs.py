"""Every config of real data: the recipes' numbers, the network, groups and rates of the optimiser."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from made import CONFIGS, small
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from paperkit.training.openmmlab import own_scope, read_config
from paperkit.training.runner import LOADERS, changed
from stpt.models.labels import THUMOS14
from stpt.training.detection import count, take_data
from stpt.training.optimizer_constructor import rates

ROWS: dict[str, dict[str, Any]] = {
    "thumos14/stpt": dict(frames=256, classes=21, batch=4, epochs=20),
    "thumos14/afsd_i3d": dict(frames=256, classes=21, batch=1, epochs=16),
    "activitynet/stpt": dict(frames=768, classes=2, batch=4, epochs=20),
    "activitynet/afsd_i3d": dict(frames=768, classes=2, batch=1, epochs=16),
    "own": dict(frames=256, classes=21, batch=4, epochs=20),
}
OVERLAYS = sorted([*(CONFIGS / "ablation").glob("*.py"), *(CONFIGS / "options").glob("*.py")])


def config_of(name: str, *changes: str) -> Any:
    return changed(read_config(str(CONFIGS / f"{name}.py")), ["model.pretrained=None", *changes])


def built(config: Any) -> nn.Module:
    init_default_scope("stpt")
    with torch.device("meta"):
        return own_scope("stpt").MODELS.build(config.model)


@pytest.mark.parametrize("name", ROWS)
def test_recipe_is_the_published_or_chosen_one(name: str) -> None:
    row, config = ROWS[name], config_of(name)
    train, test = config.train_dataloader, config.test_dataloader
    steps = {step["type"]: step for step in train.dataset.pipeline}
    order = ["ReadClip", "CropClip", "FlipClip", "ConsistencySplice", "BoundaryMasks", "PackActions"]
    assert list(steps) == order and steps["FlipClip"]["prob"] == 0.5
    assert steps["CropClip"] == dict(type="CropClip", size=96, random=True)
    assert test.dataset.pipeline[1] == dict(type="CropClip", size=96)
    assert test == config.val_dataloader and test.dataset.test_mode and not train.dataset.get("test_mode")
    assert config.model.detector.frames == row["frames"]
    assert config.model.detector.num_classes == row["classes"] and config.model.consistency == 0.1
    assert train.batch_size == row["batch"] and config.schedule.epochs == row["epochs"]
    assert config.seed == train.dataset.seed == train.sampler.seed == 2020
    if name.startswith("activitynet"):
        assert all(loader.dataset.class_agnostic and loader.dataset.clips == "whole" for loader in (train, test))
        assert config.test_evaluator.post == dict(above=1e-9, sigma=0.85, top_k=100, min_score=1e-9)
        assert config.test_evaluator.classes == ["action"] and test.dataset.subset == "validation"
    else:
        assert (train.dataset.stride, test.dataset.stride) == (30, 128) and len(THUMOS14) + 1 == row["classes"]
        assert "post" not in config.test_evaluator  # the defaults are THUMOS14's
        assert train.dataset.pad_mode == ("grey" if name == "own" else "afsd")
    if name.endswith("i3d"):
        optimizer, schedule = config.optim_wrapper.optimizer, config.schedule
        rate, decay = (1e-4, 1e-4) if name.startswith("activitynet") else (1e-5, 1e-3)
        assert optimizer == dict(type="Adam", lr=rate, weight_decay=decay)
        assert config.optim_wrapper.clip_grad is None and schedule.minimum is None and schedule.warmup == 0
    else:
        assert config.optim_wrapper.optimizer == dict(type="AdamW", lr=1e-4, weight_decay=0.05)
        assert config.optim_wrapper.clip_grad == dict(max_norm=1.0) and config.schedule.warmup == 1


@pytest.mark.parametrize("name", ROWS)
def test_network_has_the_specified_size(name: str) -> None:
    """45.4 M and 23.0 M parameters; 12.29 M of I3D and 32.46 M of AFSD's head. Clips fit the pyramid."""
    model = built(config_of(name))
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in model.children() if list(part.parameters())]
    if name == "thumos14/afsd_i3d":
        assert sizes == pytest.approx([12.29, 32.46], abs=0.01)
    elif name in ("thumos14/stpt", "own"):
        assert sizes == pytest.approx([45.4, 23.0], abs=0.06)


def test_groups_of_the_transformer() -> None:
    """The optimiser that mmengine builds: a tenth of the rate below the backbone, no decay of vectors."""
    config = config_of("thumos14/stpt")
    model = built(config)
    init_default_scope("stpt")
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found == rates(model, 1e-4, 0.05) and len(found) == len(names) and len(optimizer.param_groups) == 4
    expected = {
        "backbone.stages.0.patch_embed.proj.weight": (1e-5, 0.05),
        "backbone.stages.0.patch_embed.norm.weight": (1e-5, 0.0),
        "backbone.stages.2.blocks.0.cpe.bias": (1e-5, 0.0),
        "coarse_pyramid_detection.loc_head.conv1d.weight": (1e-4, 0.05),
        "coarse_pyramid_detection.loc_head.conv1d.bias": (1e-4, 0.0),
        "coarse_pyramid_detection.loc_heads.0.scale": (1e-4, 0.0),
        "coarse_pyramid_detection.pyramids.0.1.weight": (1e-4, 0.0),
    }
    for name, pair in expected.items():
        assert found[name] == pytest.approx(pair), name


def test_groups_of_afsd() -> None:
    """ActivityNet: the backbone at a tenth, everything decayed; THUMOS14: one rate. Frozen norms are in no group."""
    for name, factor in (("activitynet/afsd_i3d", 0.1), ("thumos14/afsd_i3d", 1.0)):
        config = config_of(name)
        model = built(config)
        init_default_scope("stpt")
        optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
        names = {id(parameter): key for key, parameter in model.named_parameters()}
        given = config.optim_wrapper.optimizer
        for group in optimizer.param_groups:
            for key in (names[id(p)] for p in group["params"] if p.requires_grad):
                rate = given.lr * (factor if key.startswith("backbone.") else 1)
                assert (group["lr"], group["weight_decay"]) == pytest.approx((rate, given.weight_decay)), key


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_overlay_changes_the_run(path: Path) -> None:
    """Each names options that there are, changes something, and leaves a network that can be built."""
    before, config = config_of("thumos14/stpt"), config_of("thumos14/stpt")
    config.merge_from_dict(read_config(str(path)).to_dict())
    assert config.to_dict() != before.to_dict()
    model = built(config)
    if path.parent.name == "ablation" and path.stem not in ("no_consistency", "detach_quality"):
        assert str(model) != str(built(before))
    init_default_scope("stpt")
    build_optim_wrapper(model, config.optim_wrapper)


@pytest.mark.parametrize(("processes", "each", "epoch"), [(1, 1, 6), (2, 1, 3), (1, 4, 8), (4, 2, 2)])
def test_epochs_in_steps(monkeypatch: pytest.MonkeyPatch, processes: int, each: int, epoch: int) -> None:
    """Twelve clips in batches of two: a step takes a batch in every process, an interval ends with an update."""
    config = small("thumos14/stpt.py", Path())
    monkeypatch.setitem(own_scope("stpt").DATASETS.module_dict, "TADDataset", lambda **options: range(12))
    config.train_dataloader.dataset.clip_length = 128
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    config.launcher = "none" if processes == 1 else "pytorch"
    config.optim_wrapper.accumulative_counts = each
    count(config)
    assert config.train_cfg.max_iters == 2 * epoch and config.default_hooks.checkpoint.interval == epoch
    assert [one["end"] for one in config.param_scheduler] == [epoch, 2 * epoch]


def test_clips_are_of_the_detectors_length() -> None:
    """One option changes all loaders; whole videos are made of that many frames, windows of 10 a second."""
    choices = dict(root=None, annotations=None, frames=None, subsets=["training", "validation"], hold_out=0,
                   clips="config", missing="refuse", faults="refuse")  # fmt: skip
    for name, clips, expected in (
        ("activitynet/stpt", "config", ("whole", None, 384)),
        ("activitynet/stpt", "windows", ("windows", 10.0, None)),
        ("thumos14/stpt", "config", ("windows", 10.0, None)),
        ("own", "whole", ("whole", None, 384)),
    ):
        config = config_of(name, "model.detector.frames=384")
        for loader in LOADERS:
            take_data(config, loader, Namespace(**{**choices, "clips": clips}))
            dataset = config[loader].dataset
            assert dataset.clip_length == 384 and (dataset.clips, dataset.fps, dataset.max_frames) == expected
