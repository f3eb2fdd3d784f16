"""timm's own entry points: registry, feature extraction, checkpointing, classifier, pretrained files."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.data import create_loader, resolve_data_config
from timm.data.dataset import ImageDataset
from timm.optim import create_optimizer_v2

import litv2  # noqa: F401  (registers)
from paperkit.errors import UserError

SMALL = dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), num_classes=10)
NAMES = ("litv2_s", "litv2_m", "litv2_b", "litv2_b_384", "litv1_s", "litv1_m", "litv1_b")


@pytest.mark.parametrize("first", ["litv2", "timm"])
def test_registers_in_either_import_order(first: str) -> None:
    second = "timm" if first == "litv2" else "litv2"
    code = f"import {first}; import {second}; import timm; assert len(timm.list_models('litv2*')) == 4"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_model_contract(name: str) -> None:
    size = 64
    model = timm.create_model(name, img_size=size, **SMALL).eval()
    images = torch.randn(2, 3, size, size)
    features = model.forward_features(images)
    assert features.shape == (2, 2, 2, 128)
    logits = model.forward_head(features)
    torch.testing.assert_close(logits, model(images))
    assert model.get_classifier().out_features == 10
    final, maps = model.forward_intermediates(images, indices=[1, 3])
    assert [m.shape for m in maps] == [(2, 32, 8, 8), (2, 128, 2, 2)]
    torch.testing.assert_close(final, features)
    model.reset_classifier(5)
    assert model(images).shape == (2, 5)
    model.reset_classifier(0)
    torch.testing.assert_close(model(images), features.mean((1, 2)))


def test_features_only_equals_stage_outputs() -> None:
    torch.manual_seed(1)
    whole = timm.create_model("litv2_s", img_size=(64, 96), **SMALL).eval()
    torch.manual_seed(1)
    maps = timm.create_model("litv2_s", features_only=True, img_size=(64, 96), **SMALL).eval()
    assert maps.feature_info.channels() == [16, 32, 64, 128] and maps.feature_info.reduction() == [4, 8, 16, 32]
    images = torch.randn(1, 3, 64, 96)
    expected = [y.permute(0, 3, 1, 2) for y in whole.stages(images)]
    for found, want in zip(maps(images), expected, strict=True):
        torch.testing.assert_close(found, want)
    two = timm.create_model("litv2_s", features_only=True, out_indices=(0, 2), **SMALL)
    assert [y.shape[1] for y in two(images)] == [16, 64]


def test_checkpointing_changes_no_gradient() -> None:
    model = timm.create_model("litv2_s", drop_path_rate=0.0, **SMALL)
    images = torch.randn(2, 3, 64, 64)
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_layer_decay_groups_cover_every_parameter_once() -> None:
    model = timm.create_model("litv2_s", **SMALL)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    assert len({group["lr_scale"] for group in optimizer.param_groups}) > 3


def test_validate_style_loader(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (80, 60), (90, 10, 200)).save(tmp_path / name / "0.png")
    model = timm.create_model("litv2_s", **SMALL).eval()
    config = resolve_data_config({}, model=model)
    assert (
        config["input_size"] == (3, 224, 224) and config["crop_pct"] == 0.875 and config["interpolation"] == "bicubic"
    )
    config["input_size"] = (3, 64, 64)
    loader = create_loader(
        ImageDataset(str(tmp_path)),
        batch_size=2,
        use_prefetcher=False,
        num_workers=0,
        device=torch.device("cpu"),
        **config,
    )
    ((images, labels),) = loader
    assert model(images).shape == (2, 10) and labels.tolist() == [0, 1]


def test_missing_pretrained_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"litv2_s\.pth cannot be downloaded from here; put the file at .*checkpoints"):
        timm.create_model("litv2_s", pretrained=True)


def test_pretrained_file_is_found_and_its_head_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    shape = {**SMALL, "num_classes": 1000}
    source = timm.create_model("litv2_s", **shape)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save({"model": source.state_dict()}, tmp_path / "hub" / "checkpoints" / "litv2_s.pth")
    model = timm.create_model("litv2_s", pretrained=True, **SMALL)
    torch.testing.assert_close(model.patch_embed.proj.weight, source.patch_embed.proj.weight)
    assert model.head.out_features == 10


def test_saved_by_timm_and_loaded_from_its_folder(tmp_path: Path) -> None:
    model = timm.create_model("litv2_s", **SMALL).eval()
    shape = {key: value for key, value in SMALL.items() if key != "num_classes"}
    timm.models.save_for_hf(model, str(tmp_path), model_args=shape)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(again(images), model(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(img_size=16), "image of 16 x 16 px; the smallest is 32 x 32"),
        (dict(img_size=224, local_ws=(0, 0, 16, 1)), "window 16 of stage 3 is larger than its grid of 14 x 14"),
        (dict(alpha=1.5), "alpha 1.5 is outside"),
    ],
)
def test_impossible_options(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        timm.create_model("litv2_s", **{**SMALL, **options})


def test_small_image_is_refused() -> None:
    model = timm.create_model("litv2_s", **SMALL)
    assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    with pytest.raises(UserError, match="image of 32 x 31 px"):
        model(torch.randn(1, 3, 32, 31))
