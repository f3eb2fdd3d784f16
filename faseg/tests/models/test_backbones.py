"""Backbones beside those of torchvision, timm and mmseg, under the names of each."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor

from faseg.models.released import read_backbone
from faseg.models.resnet import ResNet, from_torchvision, to_torchvision
from faseg.models.swin import Swin, from_classifier, shift_mask, to_mmseg, to_timm
from paperkit.errors import UserError
from paperkit.files.weights import load_strict

TINY = dict(dim=16, depths=(2, 2), heads=(1, 2), window=4)


def randomized(model: torch.nn.Module) -> dict[str, Tensor]:
    """Its state with no norm or table left at its first value."""
    torch.manual_seed(0)
    state = model.state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            value.copy_(0.1 * torch.randn_like(value) + (1 if "var" in key or "norm" in key or "bn" in key else 0))
            if "running_var" in key:
                value.abs_().add_(0.5)
    return state


@pytest.mark.parametrize("norm", ["FrozenBN", "SyncBN"])
def test_resnet_is_torchvision_s(norm: str, tmp_path: Path) -> None:
    theirs = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], 10).eval()
    torch.save(randomized(theirs), tmp_path / "r.pth")
    ours = ResNet(blocks=(1, 1, 1, 1), norm=norm).eval()
    load_strict(ours, read_backbone(tmp_path / "r.pth", ours), "r.pth")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        for found, stage in zip(ours(image), (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), strict=True):
            x = stage(x)
            torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)
    back = to_torchvision(ours.state_dict())
    assert back.keys() <= theirs.state_dict().keys() and from_torchvision(back).keys() == ours.state_dict().keys()


def test_frozen_norm_is_never_trained() -> None:
    model = ResNet((1, 1, 1, 1), 8, 4, 16).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    sum(x.sum() for x in model(torch.randn(2, 3, 64, 64))).backward()  # type: ignore[union-attr]
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(p.grad is not None for p in model.parameters())
    assert not [name for name, _ in model.named_parameters() if "norm" in name]


def test_swin_is_mmseg_s(tmp_path: Path) -> None:
    """All maps, with padding, odd sides and windows as large as the map; and back under its names."""
    from mmseg.models.backbones import SwinTransformer

    theirs = SwinTransformer(
        embed_dims=16, depths=(2, 2), num_heads=(1, 2), window_size=4, strides=(4, 2), out_indices=(0, 1),
        drop_path_rate=0.0,
    )  # fmt: skip
    theirs.eval()
    state = {key: value for key, value in randomized(theirs).items() if "relative_position_index" not in key}
    torch.save({"state_dict": state}, tmp_path / "s.pth")
    ours = Swin(**TINY).eval()  # type: ignore[arg-type]
    load_strict(ours, read_backbone(tmp_path / "s.pth", ours), "s.pth")
    image = torch.randn(2, 3, 44, 31)
    with torch.no_grad():
        for found, expected in zip(ours(image), theirs(image), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    back = to_mmseg(ours.state_dict())
    assert all(torch.equal(back[key], value) for key, value in state.items())


def test_swin_is_timm_s_but_for_the_shift(tmp_path: Path) -> None:
    """Where a map is larger than a window the two agree; where it is not, timm does not shift."""
    options = dict(img_size=64, embed_dim=16, depths=(2, 2, 2), num_heads=(1, 2, 2), window_size=4, num_classes=7)
    theirs = timm.models.SwinTransformer(**options).eval()  # type: ignore[attr-defined]
    torch.save({"model": randomized(theirs)}, tmp_path / "t.pth")
    ours = Swin(16, (2, 2, 2), (1, 2, 2), 4).eval()
    load_strict(ours, read_backbone(tmp_path / "t.pth", ours), "t.pth")
    image = torch.randn(1, 3, 64, 64)
    found = []
    with torch.no_grad():
        x = ours.patch_embed(image)
        for stage in ours.layers:
            found.append(stage(x))
            x = found[-1] if stage.downsample is None else stage.downsample(found[-1])  # type: ignore[operator]
        y = theirs.patch_embed(image)
        for i, layer in enumerate(theirs.layers):
            y = layer(y)
            same = torch.allclose(found[i], y, rtol=1e-4, atol=1e-4)
            assert same == (i < 2), f"stage {i}: map {y.shape[1]}, window 4"
            y = found[i]
    back = to_timm(ours.state_dict())
    kept = {key for key in theirs.state_dict() if not key.startswith(("norm.", "head."))}
    assert kept == {key for key in back if not key.startswith("norm")}


def test_swin_of_another_window(tmp_path: Path) -> None:
    """The authors' file with head and masks; its tables are resized, output norms keep their values."""
    source = Swin(16, (2, 2), (1, 2), 3)
    extra = {"norm.weight": torch.ones(32), "head.weight": torch.ones(5, 32), "head.bias": torch.ones(5)}
    state = {key: v for key, v in randomized(source).items() if not key.startswith(("norm0", "norm1"))}
    mask = {"layers.0.blocks.1.attn_mask": shift_mask(6, 6, 3, torch.device("cpu"))}
    torch.save({"model": {**state, **extra, **mask}}, tmp_path / "m.pth")
    ours = Swin(**TINY)  # type: ignore[arg-type]
    found = read_backbone(tmp_path / "m.pth", ours)
    load_strict(ours, found, "m.pth")
    table = "layers.1.blocks.0.attn.relative_position_bias_table"
    assert found[table].shape == (49, 2) and torch.equal(found["norm1.weight"], torch.ones(32))
    torch.testing.assert_close(found[table][[0, 6, 42, 48]], state[table][[0, 4, 20, 24]], rtol=0.5, atol=0.1)
    assert from_classifier(found).keys() == {key for key in found if "index" not in key}


def test_shift_mask_keeps_the_ends_apart() -> None:
    """One window over the whole of a 4 x 4 map, shifted by 2: four quarters, each by itself."""
    mask = shift_mask(4, 4, 4, torch.device("cpu"))[0]
    quarter = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]).flatten()
    assert torch.equal(mask == 0, quarter[:, None] == quarter)


def test_foreign_file_is_named(tmp_path: Path) -> None:
    model = ResNet((1, 1, 1, 1), 8, 4, 16)
    torch.save({"state_dict": randomized(Swin(**TINY))}, tmp_path / "s.pth")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="does not fit ResNet: 85 missing"):
        load_strict(model, read_backbone(tmp_path / "s.pth", model), "s.pth")
    with pytest.raises(UserError, match="norm 'GN' is none of FrozenBN, BN, SyncBN"):
        ResNet(norm="GN")
