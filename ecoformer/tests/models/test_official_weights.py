"""The authors' files in both directions, leftovers kept, the flag inferred, wrong bits named; conversions; sizes."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from made import TINY, ecoformer, fitted_pvt

from ecoformer.method.energy import ledger
from ecoformer.models.architectures import architecture, build
from ecoformer.models.conversion import load_classifier, start_from
from ecoformer.models.pvt import PVTv2
from ecoformer.models.released import describe_released, from_timm, load_released, to_released
from ecoformer.models.twins import Twins
from paperkit.errors import UserError
from paperkit.files.weights import read_weights, save_weights


def released_file(path: Path, model: torch.nn.Module, bare: bool = False) -> dict[str, torch.Tensor]:
    """A file as the authors' training writes it."""
    state = to_released(model)
    args = argparse.Namespace(lr=5e-5, model="pvt")
    torch.save(state if bare else {"model": state, "epoch": 29, "args": args}, path)
    return state


@pytest.mark.parametrize("bare", [False, True])
def test_there_and_back(bare: bool, tmp_path: Path) -> None:
    model = fitted_pvt()
    state = released_file(tmp_path / "a.pth", model, bare)
    assert "block1.0.attn.fast_attention.projection_matrix" in state and not any("fitted" in key for key in state)
    for key in state:
        if key.endswith("projection_matrix"):
            state[key] += 1  # not the one that would be drawn
    torch.save({"model": state}, tmp_path / "b.pth")
    ecoformer.here("convert", tmp_path / "b.pth", tmp_path / "folder", "--heads", "[1,2,3,4]")
    ecoformer.here("convert", tmp_path / "folder", tmp_path / "c.pth")
    back = read_weights(tmp_path / "c.pth")
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(PVTv2.from_pretrained(tmp_path / "folder")(images), model(images))
    torch.testing.assert_close(load_classifier(tmp_path / "folder")(images), model(images))


def test_saved_and_loaded_on_its_own(tmp_path: Path) -> None:
    model, images = fitted_pvt(bias_mode="global", bias="pow2"), torch.randn(1, 3, 64, 64)
    model.save_pretrained(tmp_path)
    again = PVTv2.from_pretrained(tmp_path)
    assert torch.equal(again(images), model(images)) and again.block1[0].attn.ksh.is_fitted  # type: ignore[index,union-attr]
    twins = Twins((8, 16), (1, 2), (2, 2), (1, 2), (4, 4), (8, 1), "GroupBlock", num_classes=3).eval()
    twins.save_pretrained(tmp_path / "twins")
    assert torch.equal(Twins.from_pretrained(tmp_path / "twins")(images), twins(images))


def test_other_bits_are_named(tmp_path: Path) -> None:
    released_file(tmp_path / "a.pth", fitted_pvt())
    with pytest.raises(
        UserError,
        match=r"block1\.0\.attn\.fast_attention\.ksh of the weights has 8 bits over 4 supports, the network 16",
    ):
        load_released(PVTv2(**{**TINY, "nbits": 16}), tmp_path / "a.pth")
    line = ecoformer.refused("convert", tmp_path / "a.pth", tmp_path / "b", "--nbits", "16", "--heads", "[1,2,3,4]")
    assert "8 bits" in line and not (tmp_path / "b").exists()


def test_unfitted_file_stays_unfitted(tmp_path: Path) -> None:
    released_file(tmp_path / "a.pth", PVTv2(**TINY))
    model = PVTv2(**TINY)
    load_released(model, tmp_path / "a.pth")
    with pytest.raises(UserError, match="was never fitted"):
        model.eval()(torch.randn(1, 3, 64, 64))


def test_missing_released_file_and_strangers(tmp_path: Path) -> None:
    assert "release v1.0 of ziplab/EcoFormer" in ecoformer.refused(
        "convert", tmp_path / "pvtv2_b0_ecoformer.pth", tmp_path / "b"
    )
    save_weights(tmp_path / "x.safetensors", {"a": torch.zeros(2)})
    assert "holds no PVTv2 or Twins weights" in ecoformer.refused("convert", tmp_path / "x.safetensors", tmp_path / "b")


@pytest.mark.parametrize("kind", ["msa", "ecoformer", "msa_share_qk"])
def test_start_from_timms_pvt(kind: str) -> None:
    """The two-stage recipe: public SRA weights -> full attention -> EcoFormer."""
    source = timm.create_model("pvt_v2_b0", num_classes=7)
    model = PVTv2(**{**architecture("pvt_v2_b0_ecoformer"), "attn_type": kind, "num_classes": 7})
    report = start_from(model, source.state_dict() and from_timm(source.state_dict()))
    left = {key.split(".attn.")[-1] for key in report.missing}
    assert left <= {f"fast_attention.ksh.{name}" for name in ("A", "mvec", "anchor", "fitted")}
    attn: Any = source.stages[0].blocks[0].attn
    name = "qkv" if kind == "msa" else "to_qk"
    assert torch.equal(model.state_dict()[f"block1.0.attn.{name}.weight"][:32], attn.q.weight)
    assert torch.equal(model.state_dict()["head.weight"], source.head.weight)


def test_timms_pvt_is_our_sra_form() -> None:
    source, images = timm.create_model("pvt_v2_b0", num_classes=7).eval(), torch.randn(1, 3, 64, 64)
    model = build("pvt_v2_b0_sra", num_classes=7).eval()
    model.load_state_dict(from_timm(source.state_dict()))
    torch.testing.assert_close(model(images), source(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "params", "energy"),
    [
        ("pvt_v2_b0_ecoformer", 3.136, 2.489), ("pvt_v2_b0_msa", 3.198, 9.253), ("pvt_v2_b0_sra", 3.667, 2.631),
        ("pvt_v2_b1_ecoformer", 11.891, 9.390), ("pvt_v2_b4_sra", 62.556, 46.632),
        ("alt_gvt_small_ecoformer", 21.522, 12.587), ("alt_gvt_large_msa", 87.722, 99.412),
    ],
)  # fmt: skip
def test_published_sizes(name: str, params: float, energy: float) -> None:
    book = ledger(lambda: build(name))
    assert round(book.params / 1e6, 3) == params and round(book.total.energy_pj() / 1e9, 3) == energy


def test_strict_count_and_names() -> None:
    script, strict = (ledger(lambda: build("pvt_v2_b0_ecoformer"), strict=s).total for s in (False, True))
    assert 1.013 < strict.energy_pj() / script.energy_pj() < 1.015 and strict.add == script.add
    with pytest.raises(UserError, match="no network 'pvt_v2_b0_ecoformr'; there are pvt_v2_b0_ecoformer"):
        architecture("pvt_v2_b0_ecoformr")
    with pytest.raises(UserError, match="no network"):
        architecture("pvt_v2_b0_ecoformer_nbits0")


def test_damaged_weights_are_named() -> None:
    """A file that lacks a layer, or whose tensor has another number of axes."""
    state = {"patch_embed1.proj.weight": torch.ones(8, 3, 7, 7)}
    with pytest.raises(UserError, match=r"F lacks block1\.0\.mlp\.fc1\.weight"):
        describe_released(state, "F")
    with pytest.raises(UserError, match="F holds weights of another shape"):
        describe_released({"patch_embed1.proj.weight": torch.ones(()), "block1.0.mlp.fc1.weight": torch.ones(2)}, "F")
