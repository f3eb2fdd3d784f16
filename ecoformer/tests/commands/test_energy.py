"""The ledger command: one of ours, a converted network of timm's, a folder."""

import json
from pathlib import Path

import pytest
from made import ecoformer, fitted_pvt


def test_energy_of_a_name(tmp_path: Path) -> None:
    out = ecoformer.here("energy", "pvt_v2_b0_ecoformer", "--output", tmp_path).out
    content = json.loads((tmp_path / "energy.json").read_text())
    models = content["models"]
    assert list(models) == ["pvt_v2_b0_ecoformer", "pvt_v2_b0_msa", "pvt_v2_b0_sra"]
    assert models["pvt_v2_b0_ecoformer"]["energy_pj"] == pytest.approx(2489261066.4, rel=1e-12)
    assert "73.1" in out and "5.379" in out and (tmp_path / "energy.png").stat().st_size > 10_000


def test_energy_of_a_folder_and_of_timms(tmp_path: Path) -> None:
    fitted_pvt().save_pretrained(tmp_path / "model")
    ecoformer.here("energy", tmp_path / "model", "--size", "64", "--layers", "--strict", "--output", tmp_path / "a")
    out = ecoformer.here("energy", "vit_tiny_patch16_224", "--size", "64", "--output", tmp_path / "b").out
    assert "vit_tiny_patch16_224, converted" in out


def test_bad_input(tmp_path: Path) -> None:
    assert "is no network of ours or timm's" in ecoformer.refused("energy", "pvt_v9", cwd=tmp_path)
    assert "the smallest image" in ecoformer.refused("energy", "pvt_v2_b0_msa", "--size", "8", cwd=tmp_path)
