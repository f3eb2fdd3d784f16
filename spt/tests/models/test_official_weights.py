"""Released backbone files: loaded strictly, converted there and back to the same tensors, refused in one line when
damaged."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made import same_bits, tiny_swin, tiny_vit
from torch import Tensor

from paperkit.errors import UserError
from paperkit.files.weights import read_weights, save_weights
from spt.method.split_qkv import split_state
from spt.models.backbones import load_backbone, read_backbone, resize_positions, state_to_npz
from spt.models.conversion import aside_path, convert_file
from spt.training.lists import load_backbone_of
from spt.training.recipe import BackboneOptions


def write_npz(path: Path, prefix: str = "opt/target/") -> dict[str, np.ndarray]:
    """Google's layout, with pre-logits and a head of another class count."""
    arrays = state_to_npz(tiny_vit(1, classes=21).state_dict(), heads=4)
    arrays["pre_logits/kernel"], arrays["pre_logits/bias"] = np.ones((32, 32), "float32"), np.ones(32, "float32")
    np.savez(path, **{f"{prefix}{name}": value for name, value in arrays.items()})
    return {f"{prefix}{name}": value for name, value in arrays.items()}


def write_moco(path: Path) -> dict[str, Tensor]:
    state = {f"module.{name}": value for name, value in tiny_vit(2, classes=9).state_dict().items()}
    torch.save({"state_dict": state, "epoch": 90}, path)
    return state


def write_mae(path: Path) -> dict[str, Tensor]:
    state = {name: value for name, value in tiny_vit(3).state_dict().items() if "head" not in name}
    state["mask_token"] = torch.ones(1, 1, 8)
    torch.save({"model": state}, path)
    return state


def write_swin(path: Path) -> dict[str, Tensor]:
    """Microsoft's keys: a downsampling belongs to the stage before; buffers lie in the file."""
    state = {}
    for name, value in tiny_swin(4).state_dict().items():
        if name.startswith("layers.1.downsample"):
            name = name.replace("layers.1", "layers.0")
        state[name.replace("head.fc.", "head.")] = value
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 4, 4)
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.arange(16).reshape(4, 4)
    torch.save({"model": state}, path)
    return state


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_npz_there_and_back(prefix: str, tmp_path: Path) -> None:
    source = write_npz(tmp_path / "a.npz", prefix)
    model = tiny_vit()
    left = load_backbone(model, tmp_path / "a.npz")
    assert left == ["head.weight", "head.bias"]
    torch.testing.assert_close(model.blocks[1].mlp.fc1.weight, tiny_vit(1, classes=21).blocks[1].mlp.fc1.weight)
    convert_file(tmp_path / "a.npz", tmp_path / "a.safetensors", tiny_vit(), "timm")
    convert_file(tmp_path / "a.safetensors", tmp_path / "b.npz", tiny_vit(), "npz")
    with np.load(tmp_path / "b.npz") as again:
        assert set(again.files) == set(source)
        assert all(np.array_equal(again[name], value) for name, value in source.items())


@pytest.mark.parametrize(("to", "write", "key"), [("moco", write_moco, "state_dict"), ("mae", write_mae, "model")])
def test_vit_pth_there_and_back(to: str, write, key: str, tmp_path: Path) -> None:
    source = write(tmp_path / "a.pth")
    convert_file(tmp_path / "a.pth", tmp_path / "a.safetensors", tiny_vit(), "timm")
    assert aside_path(tmp_path / "a.safetensors").is_file()
    convert_file(tmp_path / "a.safetensors", tmp_path / "b.pth", tiny_vit(), to)
    again = torch.load(tmp_path / "b.pth", weights_only=True)[key]
    assert again.keys() == source.keys() and all(torch.equal(again[n], v) for n, v in source.items())
    model = tiny_vit()
    load_backbone(model, tmp_path / "a.safetensors")
    load_backbone(model, tmp_path / "a.pth")


def test_swin_there_and_back(tmp_path: Path) -> None:
    source = write_swin(tmp_path / "a.pth")
    model = tiny_swin()
    load_backbone(model, tmp_path / "a.pth")
    torch.testing.assert_close(
        model.layers[1].downsample.reduction.weight, tiny_swin(4).layers[1].downsample.reduction.weight
    )
    convert_file(tmp_path / "a.pth", tmp_path / "a.safetensors", tiny_swin(), "timm")
    convert_file(tmp_path / "a.safetensors", tmp_path / "b.pth", tiny_swin(), "swin")
    again = torch.load(tmp_path / "b.pth", weights_only=True)["model"]
    assert again.keys() == source.keys() and all(torch.equal(again[n], v) for n, v in source.items())


def test_another_grid_is_resized_bicubically(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz")
    model = tiny_vit(img_size=24)
    load_backbone(model, tmp_path / "a.npz")
    expected = resize_positions(tiny_vit(1, classes=21).pos_embed, (6, 6))
    torch.testing.assert_close(model.pos_embed, expected)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_another_grid_is_resized_in_every_format(suffix: str, tmp_path: Path) -> None:
    """With the class token's place or, as in timm's `no_embed_class`, without one."""
    for options in ({}, {"no_embed_class": True}):
        source = tiny_vit(1, **options)
        path = tmp_path / f"a.{suffix}"
        save = save_weights if suffix == "safetensors" else lambda path, state: torch.save({"model": state}, path)
        save(path, source.state_dict())
        model = tiny_vit(img_size=24, **options)
        assert load_backbone(model, path) == []
        expected = resize_positions(source.pos_embed, (6, 6), prefix=0 if options else 1)
        torch.testing.assert_close(model.pos_embed, expected)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off(prefix: str, tmp_path: Path) -> None:
    state = tiny_vit(1).state_dict()
    torch.save({"model": {prefix + name: value for name, value in state.items()}}, tmp_path / "a.pth")
    model = tiny_vit()
    assert load_backbone(model, tmp_path / "a.pth") == [] and same_bits(model, state)


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "npz"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_name_file_and_key(suffix: str, value: float, tmp_path: Path) -> None:
    model = tiny_vit(1)
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[3, 4] = value
    path, state = tmp_path / f"a.{suffix}", model.state_dict()
    if suffix == "npz":
        np.savez(path, **state_to_npz(state, 4))
    elif suffix == "pth":
        torch.save({"model": state}, path)
    else:
        save_weights(path, state)
    with pytest.raises(UserError, match=rf"a\.{suffix}.*(blocks\.1\.mlp\.fc1\.weight|Dense_0/kernel)"):
        load_backbone(tiny_vit(), path)


def test_one_of_several_sets_of_weights_is_chosen(tmp_path: Path) -> None:
    """The advice is the option of the command that reads the file."""
    path = tmp_path / "a.pth"
    states = {name: tiny_vit(seed).state_dict() for name, seed in (("student", 1), ("teacher", 2))}
    torch.save(states, path)
    model = tiny_vit()
    with pytest.raises(UserError, match=r"holds 2 state dicts: student .*, teacher .*; choose one with --part student"):
        load_backbone(model, path)
    load_backbone(model, path, part="teacher")
    assert same_bits(model, states["teacher"])
    options = BackboneOptions(file=str(path))
    with pytest.raises(UserError, match=r"choose one with --backbone\.part student"):
        load_backbone_of(model, options)
    load_backbone_of(model, replace(options, part="student"))
    assert same_bits(model, states["student"])


class Runs:
    """Pickled by a name that no safe reader takes."""


def test_trust_is_advised_by_the_commands_own_option(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "run": Runs()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"add --trust-pickle$"):
        load_backbone(tiny_vit(), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"add --backbone\.trust_pickle true$"):
        load_backbone_of(tiny_vit(), BackboneOptions(file=str(tmp_path / "a.pth")))


def test_arrays_that_would_swell_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", cls=np.zeros(30_000_000, np.float32))
    with pytest.raises(UserError, match=r"a\.npz cannot be read as npz: it would expand from"):
        load_backbone(tiny_vit(), tmp_path / "a.npz")


def test_misfits_name_the_keys(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"blocks\.3"):
        load_backbone(tiny_vit(depth=4), tmp_path / "a.npz")
    with pytest.raises(UserError, match="missing"):
        load_backbone(tiny_swin(), tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"no pretrained file at .*ViT-B_16\.npz; put ViT-B_16\.npz there"):
        load_backbone(tiny_vit(), tmp_path / "ViT-B_16.npz")


def test_split_follows_the_fused_thirds() -> None:
    state = tiny_vit().state_dict()
    q = split_state(state)["blocks.0.attn.q.weight"]
    assert torch.equal(q, state["blocks.0.attn.qkv.weight"][:32])


@pytest.mark.parametrize("write", [write_npz, write_moco, write_swin], ids=["npz", "moco", "swin"])
def test_damaged_files_end_in_one_line(write, tmp_path: Path) -> None:
    """Truncated and flipped files: refused, or read as tensors of the right shapes; never another error."""
    path = tmp_path / f"a{'.npz' if write is write_npz else '.pth'}"
    write(path)
    content, draw = path.read_bytes(), random.Random(0)
    model = tiny_swin() if write is write_swin else tiny_vit()
    lines: list[str] = []
    for _ in range(60):
        damaged = bytearray(content)
        if draw.random() < 0.5:
            damaged = damaged[: draw.randrange(len(damaged))]
        else:
            for _ in range(20):
                damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            load_backbone(model, path)
        except UserError as error:
            lines.append(str(error))
    assert len(lines) > 20 and not any("\n" in line for line in lines)


def test_own_files_refuse_every_flipped_bit(tmp_path: Path) -> None:
    write_moco(tmp_path / "a.pth")
    path = tmp_path / "a.safetensors"
    convert_file(tmp_path / "a.pth", path, tiny_vit(), "timm")
    content, draw = path.read_bytes(), random.Random(1)
    for _ in range(40):
        damaged = bytearray(content)
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(UserError):
            read_weights(path)
    path.write_bytes(content)
    read_backbone(path, tiny_vit())
