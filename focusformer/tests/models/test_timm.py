"""timm's own entry points for sub-networks."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2

from focusformer.method.architecture import Architecture, SuperSizes
from focusformer.method.supernet import Supernet
from focusformer.models.extraction import extract_subnet
from focusformer.models.folders import SavedSupernet
from focusformer.models.names import FILES, SUBNET
from focusformer.models.released import told_space
from paperkit.errors import UserError
from paperkit.files.weights import save_checkpoint

SMALL: dict[str, Any] = dict(
    architecture="24/3,1,2/1.5,2,2", img_size=32, patch_size=8, head_dim=8, num_classes=10, max_relative_position=3
)
SIZES = SuperSizes(32, 3, 4, 4.0, head_dim=8, img_size=32, patch_size=8, num_classes=6, max_relative_position=3)


def pictures(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("first", ["timm", "focusformer.method.supernet"])
def test_registers_in_either_import_order(first: str) -> None:
    code = f"import {first}; import focusformer, timm; names = timm.list_models(['focusformer*', 'autoformer*'])"
    subprocess.run([sys.executable, "-c", f"{code}; assert len(names) == 4, names"], check=True)


@pytest.mark.parametrize(("name", "parameters"), zip(FILES, (5867944, 22891432, 53691688), strict=True))
def test_named_architectures(name: str, parameters: int) -> None:
    """Parameters of the named architectures."""
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_model_contract() -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model(SUBNET, **SMALL).eval()
    images = pictures()
    features = model.forward_features(images)
    assert features.shape == (2, 17, 24)
    torch.testing.assert_close(model.forward_head(features), model(images))
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), features[:, 1:].mean(1))
    final, maps = model.forward_intermediates(images, indices=[0, 2], norm=True)
    assert [m.shape for m in maps] == [(2, 24, 4, 4)] * 2
    torch.testing.assert_close(final, features)
    torch.testing.assert_close(maps[1].flatten(2).mT, features[:, 1:])
    (tokens, prefix), *_ = model.forward_intermediates(
        images, indices=1, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True, norm=True
    )
    torch.testing.assert_close(torch.cat([prefix, tokens], 1), features)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    assert model.no_weight_decay() == {"pos_embed", "cls_token"}
    assert model.get_classifier().out_features == 10
    model.reset_classifier(5)
    assert model(images).shape == (2, 5)
    model.reset_classifier(0, "token")
    torch.testing.assert_close(model(images), features[:, 0])


def test_features_only() -> None:
    torch.manual_seed(1)
    whole: Any = timm.create_model(SUBNET, **SMALL).eval()
    torch.manual_seed(1)
    maps = timm.create_model(SUBNET, features_only=True, out_indices=(0, 1), **SMALL).eval()
    assert maps.feature_info.channels() == [24, 24] and maps.feature_info.reduction() == [8, 8]
    expected = whole.forward_intermediates(pictures(), indices=[0, 1], intermediates_only=True)
    for found, wanted in zip(maps(pictures()), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    model, gradients = timm.create_model(SUBNET, **SMALL).train(), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(pictures()).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


@torch.no_grad()
def test_an_extracted_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = extract_subnet(Supernet(SIZES), Architecture(24, (3, 1), (1.5, 2.0)))
    model.save_pretrained(tmp_path)
    again = timm.create_model(SUBNET, pretrained_cfg_overlay=dict(file=tmp_path)).eval()
    assert torch.equal(again(pictures()), model(pictures()))
    tuned = timm.create_model(SUBNET, pretrained_cfg_overlay=dict(file=tmp_path), num_classes=3, img_size=48).eval()
    assert tuned(pictures(48)).shape == (2, 3)
    assert torch.equal(tuned.blocks[1].attn.qkv.weight, model.blocks[1].attn.qkv.weight)


@torch.no_grad()
def test_a_supernet_file(tmp_path: Path) -> None:
    """Cut out on the way in; the sizes are the file's."""
    torch.manual_seed(0)
    supernet = Supernet(SIZES).eval()
    architecture = Architecture(24, (3, 1), (1.5, 2.0))
    save_checkpoint(tmp_path / "a.pth", {"model": supernet.state_dict()})
    overlay = dict(file=tmp_path / "a.pth")
    model = timm.create_model(SUBNET, architecture=str(architecture), pretrained_cfg_overlay=overlay).eval()
    torch.testing.assert_close(model(pictures()), supernet(pictures(), architecture), rtol=1e-5, atol=1e-5)
    SavedSupernet(told_space(supernet.state_dict(), "it").to_plain()).save_pretrained(tmp_path / "folder")
    with pytest.raises(UserError, match="is a supernet: cut an architecture out"):
        timm.create_model(SUBNET, pretrained_cfg_overlay=dict(file=tmp_path / "folder"))
    with pytest.raises(UserError, match="embedding width 64 is above"):
        timm.create_model(SUBNET, architecture="64/4/4", pretrained_cfg_overlay=overlay)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"supernet-tiny\.pth cannot be downloaded from here; put the file at"):
        timm.create_model("autoformer_tiny", pretrained=True)
    with pytest.raises(UserError, match="focusformer_subnet needs an architecture"):
        timm.create_model(SUBNET)
    with pytest.raises(UserError, match="focusformer_subnet has no released weights"):
        timm.create_model(SUBNET, pretrained=True)
