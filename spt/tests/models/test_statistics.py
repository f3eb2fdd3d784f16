"""Running statistics of a frozen backbone, which every training step moves, belong to the task."""

from pathlib import Path

import pytest
import timm
import torch
from made import CLASSES, same_bits
from torch import nn
from torch.nn import functional as F

from spt.deployment.hot_swap import HotSwap
from spt.method.sensitivity import measure_sensitivities, reset_head
from spt.models.delta import load_delta
from spt.models.hub_model import SPTClassifier
from spt.models.spt_model import SPTConfig, SPTModel, get_spt_model
from spt.training.recipe import RecipeOptions
from spt.training.tuning_module import TuningModule

SMALL = {
    "tiny_vit_5m_224": {"embed_dims": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
    "xcit_nano_12_p16_224": {"img_size": 64, "embed_dim": 32, "depth": 2},
    "levit_128s": {},
}


def backbone(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=CLASSES, **SMALL[name])
    reset_head(model)
    return model


@pytest.mark.parametrize("name", SMALL)
def test_a_delta_keeps_what_training_moved(name: str, tmp_path: Path) -> None:
    """Saved and loaded, hot swapped, and in a checkpoint: the same logits; taken off: the same bits as before."""
    model, side = backbone(name), SMALL[name].get("img_size", 224)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    images, labels = 3 + torch.randn(4, 3, side, side), torch.tensor([0, 1, 2, 3])
    values = measure_sensitivities(model, [(images, labels)], fixed=())
    tuned = get_spt_model(model, SPTConfig(budget=2000, r=2, fixed=(), drop=0, drop_path=0), values)
    tuned.train()
    for _ in range(2):
        F.cross_entropy(tuned(images), labels).backward()
    wanted = tuned.eval()(images)
    tuned.save_pretrained(tmp_path / "delta")
    moved = [n for n in load_delta(tmp_path / "delta").tensors if "running_mean" in n and "head" not in n]
    assert moved
    again = SPTModel.from_pretrained(backbone(name), tmp_path / "delta").eval()
    torch.testing.assert_close(again(images), wanted, rtol=1e-5, atol=1e-5)
    plain = backbone(name)
    swap = HotSwap(plain)
    swap.add("task", load_delta(tmp_path / "delta"))
    torch.testing.assert_close(swap.switch("task")(images), wanted, rtol=1e-4, atol=1e-4)
    assert same_bits(swap.switch(None), before)
    module = TuningModule(tuned.base, RecipeOptions(), CLASSES, ["test"])
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert {f"model.{n}" for n in moved} <= checkpoint["state_dict"].keys()
    if name == "xcit_nano_12_p16_224":
        whole = SPTClassifier.of(tuned, name, SMALL[name]).eval()
        torch.testing.assert_close(whole(images), wanted, rtol=1e-5, atol=1e-5)
    with tuned.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(tuned(images), backbone(name).eval()(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tuned(images), wanted, rtol=1e-6, atol=1e-6)
    assert same_bits(tuned.unload(), before)


def test_statistics_that_did_not_move_are_left_out(tmp_path: Path) -> None:
    """A delta stays as small as what was trained."""
    model = backbone("xcit_nano_12_p16_224")
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    values = measure_sensitivities(model, [(images, labels)], fixed=(), eval_mode=True)
    tuned = get_spt_model(model, SPTConfig(budget=2000, r=2, fixed=()), values)
    assert not [n for n in tuned.delta().tensors if "running" in n or "batches" in n]
