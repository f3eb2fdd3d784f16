"""Weights by the names of timm, DeiT and Microsoft's Swin in both directions, scales that start, strangers by name."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from made import DEIT, SWIN, bivit, pictures, small_network

from bivit.models.binarize import METHODS, BinaryConfig, binary_layers
from bivit.models.classifier import BinaryClassifier, from_pretrained, load_classifier, save_pretrained
from bivit.models.keys import load_pretrained, load_state, to_form, to_timm
from paperkit.errors import UserError
from paperkit.files.weights import read_weights, save_weights

DEIT_NAME, SWIN_NAME = "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"
SIZES = {DEIT_NAME: DEIT, SWIN_NAME: SWIN}


def options(name: str) -> list[str]:
    return ["--arch", name, "--options", str(SIZES[name])]


@pytest.mark.parametrize("method", [None, "bivit"])
@pytest.mark.parametrize(("name", "names"), [(DEIT_NAME, "timm"), (SWIN_NAME, "timm"), (SWIN_NAME, "microsoft")])
def test_there_and_back(name: str, names: Any, method: str | None, tmp_path: Path) -> None:
    """As DeiT's and Swin's trainings write their files; float ones, and binary ones with scales."""
    model = small_network(name, None if method is None else METHODS[method])
    state = to_form(model, names)
    torch.save({"model": state, "epoch": 299, "args": argparse.Namespace(lr=5e-4)}, tmp_path / "a.pth")
    out = bivit.here("convert", tmp_path / "a.pth", tmp_path / "folder", *options(name)).out
    assert f"by the names of {names}" in out and ("float" in out) == (method is None)
    bivit.here("convert", tmp_path / "folder", tmp_path / "b.pth")
    back = read_weights(tmp_path / "b.pth")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) and back[key].dtype == state[key].dtype for key in state)
    images = pictures()
    assert torch.equal(from_pretrained(tmp_path / "folder")(images), model(images))


def test_names_of_microsofts_swin() -> None:
    state = to_form(small_network(SWIN_NAME), "microsoft")
    assert "layers.0.downsample.reduction.weight" in state and "layers.1.downsample.reduction.weight" not in state
    assert {"head.weight", "layers.0.blocks.0.attn.relative_position_index", "layers.0.blocks.1.attn_mask"} <= set(
        state
    )
    assert "layers.0.blocks.0.attn_mask" not in state and state["layers.0.blocks.1.attn_mask"].shape == (16, 16, 16)
    assert to_timm(state)[1] == "microsoft" and to_timm(to_form(small_network(SWIN_NAME), "timm"))[1] == "timm"
    with pytest.raises(UserError, match="Microsoft's names are Swin's; a VisionTransformer has timm's"):
        to_form(small_network(), "microsoft")


def test_keys_as_published() -> None:
    """DeiT-S with SAB and PWS: timm's keys, and a scale beside each of the four weights of a block."""
    with torch.device("meta"):
        state = BinaryClassifier("deit_small_patch16_224", binary={}).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert len(shapes) == 12 * 16 + 8 and shapes["pos_embed"] == (1, 197, 384)
    for layer, out, width in (("attn.qkv", 1152, 384), ("attn.proj", 384, 384), ("mlp.fc1", 1536, 384),
                              ("mlp.fc2", 384, 1536)):  # fmt: skip
        assert shapes[f"blocks.11.{layer}.weight"] == (out, width)
        assert shapes[f"blocks.11.{layer}.bias"] == (out,)
        assert shapes[f"blocks.11.{layer}.scaling_factor"] == (out, 1)


def test_float_weights_load_but_for_the_scales_which_start() -> None:
    source, model = small_network(config=None, seed=1), small_network()
    load_state(model, source.state_dict(), "F")
    for name, layer in binary_layers(model).items():
        assert torch.equal(layer.weight, source.get_submodule(name).weight)
        torch.testing.assert_close(layer.scaling_factor, layer.weight.abs().mean(1, keepdim=True))
    state = dict(source.state_dict())
    del state["blocks.0.attn.qkv.bias"]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"F does not fit .*1 missing: blocks\.0\.attn\.qkv\.bias$"):
        load_state(model, state, "F")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_zero_scales_start_as_in_the_released_code(tmp_path: Path) -> None:
    state = {k: torch.zeros_like(v) if "scaling" in k else v for k, v in small_network(seed=1).state_dict().items()}
    save_weights(tmp_path / "zero.safetensors", state)
    model = load_pretrained(small_network(), tmp_path / "zero.safetensors")
    model(pictures())
    assert all(bool((layer.scaling_factor > 0).all()) for layer in binary_layers(model).values())


def test_what_scales_say_of_a_file(tmp_path: Path) -> None:
    """In attention and MLP: W1A32; in attention alone: the first stage of CLB; none: float, or what is told."""
    for name, change, mlp in (("whole", "w1a32", True), ("first", "float", False)):
        config = BinaryConfig(mlp=change)
        save_weights(tmp_path / f"{name}.safetensors", small_network(config=config).state_dict())
        model = load_classifier(tmp_path / f"{name}.safetensors", arch=DEIT_NAME, options=DEIT)
        assert any(".mlp." in layer for layer in binary_layers(model)) == mlp
    save_weights(tmp_path / "mean.safetensors", small_network(config=METHODS["bibert"]).state_dict())
    told: dict[str, Any] = dict(arch=DEIT_NAME, options=DEIT)
    assert not binary_layers(load_classifier(tmp_path / "mean.safetensors", **told))
    layers = binary_layers(load_classifier(tmp_path / "mean.safetensors", method="bibert-w1a1", **told))
    assert layers["blocks.0.mlp.fc1"].rule.inputs == "sign" and layers["blocks.0.mlp.fc1"].scaling_factor is None


def test_a_published_size_is_told_by_its_shapes(tmp_path: Path) -> None:
    state = BinaryClassifier("deit_tiny_patch16_224", num_classes=3).state_dict()
    save_weights(tmp_path / "a.safetensors", state)
    out = bivit.here("convert", tmp_path / "a.safetensors", tmp_path / "folder", "--method", "bivit").out
    assert "deit_tiny_patch16_224, 48 binary linears" in out


def test_saved_folder(tmp_path: Path) -> None:
    model, images = small_network(), pictures()
    save_pretrained(model, tmp_path, DEIT_NAME, METHODS["bivit"], DEIT)
    again = from_pretrained(tmp_path)
    assert torch.equal(again(images), model(images)) and type(again) is type(model)
    hub = BinaryClassifier.from_pretrained(tmp_path)
    assert torch.equal(hub(images), model(images)) and hub.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(UserError, match="does not fit"):
        save_pretrained(small_network(config=METHODS["bibert"]), tmp_path, DEIT_NAME, METHODS["bivit"], DEIT)
    assert torch.equal(from_pretrained(tmp_path)(images), model(images))
