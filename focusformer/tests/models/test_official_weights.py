"""AutoFormer's supernets: keys and shapes as released, strictly in, tensor for tensor back."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made import focusformer
from torch import Tensor

from focusformer.method.architecture import AUTOFORMER, SPACES, Architecture, SuperSizes
from focusformer.method.supernet import Supernet
from focusformer.models.folders import SavedSupernet, load_model, load_subnet, load_supernet
from focusformer.models.released import read_architecture, resized_positions, start_from, told_sizes
from focusformer.models.static_vit import StaticViT
from paperkit.errors import UserError
from paperkit.files.weights import read_weights

ARCHITECTURE = Architecture(24, (3, 1), (1.5, 2.5))


def sizes(**options: Any) -> SuperSizes:
    """A supernet of milliseconds; no published size."""
    given: dict[str, Any] = dict(embed=32, depth=3, heads=4, ratio=4.0, head_dim=8, img_size=32, num_classes=6)
    return SuperSizes(**{**given, "patch_size": 8, "max_relative_position": 5, **options})


def state_of(sizes: SuperSizes, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = Supernet(sizes).state_dict()
    return {key: torch.randn(value.shape, generator=generator) for key, value in shapes.items()}


def write_official(path: Path, state: dict[str, Tensor]) -> Path:
    """As the released training code writes its checkpoints."""
    torch.save({"model": state, "epoch": 499, "args": argparse.Namespace(lr=1e-3, gp=True)}, path)
    return path


@pytest.mark.parametrize("name", ["ti", "s", "b"])
def test_keys_as_published(name: str) -> None:
    """Section 4, every key of the three released files and no other; no buffers."""
    space = SPACES[name]
    d, depth = space.sizes.embed, space.sizes.depth
    with torch.device("meta"):
        state = Supernet(space.sizes).state_dict()
    expected: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, 197, d), "cls_token": (1, 1, d), "patch_embed_super.proj.weight": (d, 3, 16, 16),
        "patch_embed_super.proj.bias": (d,), "norm.weight": (d,), "norm.bias": (d,), "head.weight": (1000, d),
        "head.bias": (1000,),
    }  # fmt: skip
    for i in range(depth):
        layers = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "fc1": (4 * d, d), "fc2": (d, 4 * d)}
        for layer, shape in layers.items():
            expected |= {f"blocks.{i}.{layer}.weight": shape, f"blocks.{i}.{layer}.bias": shape[:1]}
        for norm in ("attn_layer_norm", "ffn_layer_norm"):
            expected |= {f"blocks.{i}.{norm}.{kind}": (d,) for kind in ("weight", "bias")}
        for to in ("k", "v"):
            expected |= {f"blocks.{i}.attn.rel_pos_embed_{to}.embeddings_table_{a}": (30, 64) for a in ("v", "h")}
    assert {key: tuple(value.shape) for key, value in state.items()} == expected
    assert told_sizes(state, "the file") == space.sizes


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_there_and_back(suffix: str, tmp_path: Path) -> None:
    state = state_of(sizes())
    write_official(tmp_path / "supernet.pth", state)
    out = focusformer.here("convert", "supernet.pth", "folder", cwd=tmp_path).out
    assert "width 32 and 3 layers, 32 px, 6 classes" in out
    focusformer.here("convert", "folder", f"back{suffix}", cwd=tmp_path)
    back = read_weights(tmp_path / f"back{suffix}")
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    images = torch.randn(2, 3, 32, 32)
    expected = load_supernet(tmp_path / "supernet.pth")(images, ARCHITECTURE)
    assert torch.equal(SavedSupernet.from_pretrained(tmp_path / "folder")(images, ARCHITECTURE), expected)


def test_a_space_file_says_what_weights_do_not(tmp_path: Path) -> None:
    """The layout of the bias and the pooling leave no trace in shapes; the space's choices neither."""
    write_official(tmp_path / "a.pth", state_of(sizes()))
    (tmp_path / "space.yaml").write_text(
        "SUPERNET: {EMBED_DIM: 32, DEPTH: 3, NUM_HEADS: 4, MLP_RATIO: 4.0, head_dim: 8, img_size: 32, patch_size: 8,\n"
        "  num_classes: 6, max_relative_position: 5, qkv_bias_layout: interleaved, gp: false}\n"
        "SEARCH_SPACE: {EMBED_DIM: [24, 32], DEPTH: [2, 3], NUM_HEADS: [2, 4], MLP_RATIO: [2.0, 4.0]}\n"
    )
    focusformer.here("convert", "a.pth", "folder", "--space", "space.yaml", cwd=tmp_path)
    supernet = load_supernet(tmp_path / "folder")
    assert supernet.sizes == sizes(qkv_bias_layout="interleaved", gp=False)
    assert supernet.space.embed == (24, 32) and supernet.space.ratios == (2.0, 4.0)
    plain = load_supernet(tmp_path / "a.pth")
    assert plain.space.embed == (32,) and plain.space.size() == 1
    images = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(plain(images, ARCHITECTURE), supernet(images, ARCHITECTURE), atol=1e-2)


def test_m_is_read_from_the_tables() -> None:
    """As users found in files of another image size: tables of (130, 64) are M = 64."""
    with torch.device("meta"):
        state = Supernet(SuperSizes(448, 1, 7, 4.0, img_size=1024, max_relative_position=64)).state_dict()
    found = told_sizes(state, "the file")
    assert (found.max_relative_position, found.img_size, found.heads) == (64, 1024, 7)
    assert state["blocks.0.attn.rel_pos_embed_k.embeddings_table_v"].shape == (130, 64)


@pytest.mark.parametrize("missing", ["relative_position", "abs_pos", "qkv_bias", "pre_norm"])
def test_what_a_file_lacks_is_told(missing: str) -> None:
    given = sizes(**{missing: False}, **({"img_size": 224, "patch_size": 16} if missing == "abs_pos" else {}))
    found = told_sizes(state_of(given), "the file")
    assert not getattr(found, missing)
    Supernet(found).load_state_dict(state_of(given))


def test_another_number_of_tokens() -> None:
    """Positions are resized bicubically but for the class token's; a classifier of other classes stays new."""
    state = state_of(sizes())
    supernet = Supernet(sizes(img_size=48, num_classes=3))
    head = supernet.head.weight.clone()
    assert start_from(supernet, state, "the file") == ["pos_embed", "head.weight", "head.bias"]
    assert torch.equal(supernet.head.weight, head)
    assert supernet.pos_embed is not None
    assert torch.equal(supernet.pos_embed[:, 0], state["pos_embed"][:, 0])
    grid = state["pos_embed"][:, 1:].mT.reshape(1, 32, 4, 4)
    expected = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bicubic")
    torch.testing.assert_close(supernet.pos_embed[:, 1:].mT.reshape(1, 32, 6, 6), expected)
    assert torch.equal(resized_positions(state["pos_embed"], 16), state["pos_embed"])
    with pytest.raises(UserError, match="both grids must be square"):
        resized_positions(state["pos_embed"], 15)
    del state["norm.bias"]
    with pytest.raises(UserError, match=r"the file does not fit Supernet: 1 missing: norm\.bias"):
        start_from(Supernet(sizes(img_size=48)), state, "the file")


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = state_of(sizes())
    del state["blocks.1.fc1.bias"]
    write_official(tmp_path / "a.pth", {**state, "extra": torch.zeros(2)})
    said = focusformer.refused("convert", "a.pth", "folder", cwd=tmp_path)
    assert "1 missing: blocks.1.fc1.bias; 1 unexpected: extra" in said and not (tmp_path / "folder").exists()
    write_official(tmp_path / "b.pth", {"conv1.weight": torch.zeros(2, 3)})
    assert "b.pth holds no supernet: no patch_embed_super" in focusformer.refused("convert", "b.pth", "f", cwd=tmp_path)
    write_official(tmp_path / "c.pth", state_of(sizes()))
    assert "no space 'huge'" in focusformer.refused("convert", "c.pth", "f", "--space", "huge", cwd=tmp_path)
    assert "misshapen" in focusformer.refused("convert", "c.pth", "f", "--space", "digits", cwd=tmp_path)
    SavedSupernet.from_released(tmp_path / "c.pth").save_pretrained(tmp_path / "folder")
    assert "d.bin must end in .pth" in focusformer.refused("convert", "folder", "d.bin", cwd=tmp_path)
    load_subnet(tmp_path / "c.pth", ARCHITECTURE).save_pretrained(tmp_path / "cut")
    assert "is one sub-network (24/3,1/1.5,2.5)" in focusformer.refused("convert", "cut", "d.pth", cwd=tmp_path)
    assert isinstance(load_model(tmp_path / "cut"), StaticViT)


def test_three_ways_to_write_an_architecture(tmp_path: Path) -> None:
    tiny = AUTOFORMER["ti"]
    (tmp_path / "a.json").write_text(json.dumps(tiny.to_official()))
    (tmp_path / "b.json").write_text(json.dumps(str(tiny)))
    for text in ("AutoFormer-T", "autoformer_tiny", str(tiny), str(tmp_path / "a.json"), str(tmp_path / "b.json")):
        assert read_architecture(text) == tiny
    (tmp_path / "c.json").write_text(json.dumps({"layer_num": 2}))
    (tmp_path / "d.json").write_text("[1]")
    for text, said in (
        ("AutoFormer-X", "or AutoFormer-T, -S or -B"),
        (str(tmp_path / "c.json"), "an architecture needs layer_num"),
        (str(tmp_path / "d.json"), "holds a list"),
        (str(tmp_path / "none.json"), "no architecture at"),
    ):
        with pytest.raises(UserError, match=said):
            read_architecture(text)


def test_saved_space_is_the_space(tmp_path: Path) -> None:
    supernet = SavedSupernet(SPACES["digits"].to_plain(), drop_path_rate=0.1)
    supernet.save_pretrained(tmp_path)
    again = SavedSupernet.from_pretrained(tmp_path)
    assert again.space == SPACES["digits"] and again.path_rates == supernet.path_rates


@pytest.mark.parametrize(("place", "said"), [("SUPERNET", "depth 1000000000 is above 1000 layers"),
                                             ("SEARCH_SPACE", "depth 1000000000 is above the supernet")])  # fmt: skip
def test_a_config_cannot_ask_for_endless_depth(place: str, said: str, tmp_path: Path) -> None:
    SavedSupernet(SPACES["digits"].to_plain()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["space"][place]["DEPTH"] = 10**9 if place == "SUPERNET" else [1, 10**9]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=said):
        load_model(tmp_path)
