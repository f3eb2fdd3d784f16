"""Every config of real data: the published numbers, the network's size, groups and rates of the optimiser."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made import CONFIGS
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
from torch import nn

from paperkit.training.openmmlab import read_config
from paperkit.training.runner import changed

GOLDEN = Path(__file__).parents[1] / "golden"
ROWS: dict[str, dict[str, Any]] = {
    "ade20k/faseg_r50": dict(crop=(512, 512), size=512, longest=(2048, 2048, 3584), count=50_511_639),
    "ade20k/faseg_swin_t": dict(crop=(512, 512), size=512, longest=(2048, 2048, 3584), count=53_922_065),
    "ade20k/faseg_swin_b": dict(crop=(640, 640), size=640, longest=(2560, 2560, 4480), count=113_412_815),
    "ade20k/faseg_swin_l": dict(crop=(640, 640), size=640, longest=(2560, 2560, 4480), count=221_995_787),
    "cityscapes/faseg_r50": dict(crop=(512, 1024), size=1024, longest=(4096, 2048, 4096), count=50_531_092),
}


def config_of(name: str, *changes: str) -> Any:
    return changed(read_config(str(CONFIGS / f"{name}.py")), ["model.backbone.pretrained=None", *changes])


@pytest.mark.parametrize("name", ROWS)
def test_recipe_as_published(name: str) -> None:
    row, config = ROWS[name], config_of(name)
    ade = name.startswith("ade20k")
    steps = {step["type"]: step for step in config.train_dataloader.dataset.pipeline}
    order = ["LoadImageFromFile", "LoadAnnotations", "ShortestEdge", "RandomCrop", "PhotoMetricDistortion",
             "RandomFlip", *(["Pad"] if ade else []), "PackSegInputs"]  # fmt: skip
    assert list(steps) == order and steps["RandomFlip"]["prob"] == 0.5
    assert steps["RandomCrop"]["crop_size"] == row["crop"] and "cat_max_ratio" not in steps["RandomCrop"]
    assert steps["ShortestEdge"]["sizes"] == [int(x * 0.1 * row["size"]) for x in range(5, 21)]
    if ade:
        assert steps["Pad"]["size"] == row["crop"] and steps["Pad"]["pad_val"] == dict(img=128, seg=255)
    test = config.test_dataloader.dataset.pipeline[1]
    versions = config.tta_pipeline[2]["transforms"][0]
    assert test["sizes"] == row["size"] and config.tta_pipeline[1] == test
    assert [one["sizes"] for one in versions] == [row["size"] * k // 4 for k in (2, 3, 4, 5, 6, 7)]
    longest = (steps["ShortestEdge"]["longest"], test["longest"], versions[0]["longest"])
    assert longest == row["longest"]
    assert config.optim_wrapper.optimizer == dict(
        type="AdamW", lr=1e-4, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8
    )
    assert config.optim_wrapper.clip_grad == dict(max_norm=0.01, norm_type=2)
    iterations = 160000 if ade else 90000
    assert config.train_cfg.max_iters == iterations and config.param_scheduler[0].end == iterations + 1
    assert config.train_dataloader.batch_size == 2 and config.train_cfg.val_interval == 5000
    assert config.seed == (5 if name.endswith("swin_t") else 0) == config.train_dataloader.dataset.seed
    assert config.test_dataloader == config.val_dataloader


def built(name: str) -> nn.Module:
    register_all_modules()
    with torch.device("meta"):
        return MODELS.build(config_of(name).model)


@pytest.mark.parametrize("name", ROWS)
def test_network_has_the_authors_size(name: str) -> None:
    assert sum(p.numel() for p in built(name).parameters()) == ROWS[name]["count"]


def test_groups_are_the_authors() -> None:
    """The optimiser that mmengine builds gives each parameter the rate and decay of the official trainer."""
    model, config = built("ade20k/faseg_r50"), config_of("ade20k/faseg_r50")
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)].replace("decode_head.", "sem_seg_head."): [group["lr"], group["weight_decay"]]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    expected = json.loads((GOLDEN / "param_groups_ade_faseg_r50.json").read_text())["groups"]
    assert found.keys() == expected.keys()
    assert all(found[key] == pytest.approx(value) for key, value in expected.items())


def test_rate_is_the_authors() -> None:
    """mmengine's scheduler, as the config has it, after the iterations that the reference names."""
    expected = json.loads((GOLDEN / "lr_schedule.json").read_text())
    config = config_of("ade20k/faseg_r50")
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-5)
    schedule = PARAM_SCHEDULERS.build({**config.param_scheduler[0], "optimizer": optimizer})
    rates = {int(at): rate for at, rate in expected["lr"].items()}
    for i in range(1001):
        if i in rates:
            assert optimizer.param_groups[0]["lr"] == pytest.approx(rates[i], rel=1e-9)
        schedule.step()
    whole = [at for at in rates if at > 1000]
    value, last = optimizer.param_groups[0]["lr"], 1001
    end = config.param_scheduler[0].end - 1
    for at in whole:  # the product of the scheduler's own factors, without its steps
        value *= ((1 - at / end) / (1 - last / end)) ** 0.9
        last = at
        assert value == pytest.approx(rates[at], rel=1e-9)


@pytest.mark.parametrize("path", sorted((CONFIGS / "ablation").glob("*.py")), ids=lambda path: path.stem)
def test_overlay_changes_the_network(path: Path) -> None:
    """Each overlay names options that the head has, and leaves a network that is not the paper's."""
    config = config_of("ade20k/faseg_r50")
    config.merge_from_dict(read_config(str(path)).to_dict())
    register_all_modules()
    with torch.device("meta"):
        model = MODELS.build(config.model)
    assert sum(p.numel() for p in model.parameters()) <= ROWS["ade20k/faseg_r50"]["count"]
    assert config.model != config_of("ade20k/faseg_r50").model
