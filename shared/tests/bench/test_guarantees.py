"""The bench of paperkit itself, on a tiny model: every comparison is there, with its noise floor, in the JSON file."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

import guarantees


def test_every_comparison_is_measured_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarantees, "MODEL", "test_vit")
    guarantees.run(Namespace(pairs=1, threads=1, output=str(tmp_path / "bench")))
    found = json.loads((tmp_path / "bench" / "bench.json").read_text())
    names = {title: [ratio["name"] for ratio in ratios] for title, ratios in found["ratios"].items()}
    assert names == {
        "save_weights / safetensors, no sync": ["baseline again", "safetensors, sync", "save_weights"],
        "read_weights / safetensors": ["baseline again", "read_weights"],
        "save_checkpoint / torch.save, no sync": ["baseline again", "torch.save, sync", "save_checkpoint"],
        "read_checkpoint / torch.load": ["baseline again", "read_checkpoint"],
        "seeded loader / plain": ["baseline again", "seeded"],
        "AdamW update / fused: false": ["baseline again", "one tensor at a time", "fused: true"],
    }
    assert found["machine"]["threads"] == 1 and found["machine"]["cpu"]["cores"] >= 1
    assert [path.name for path in (tmp_path / "bench").iterdir()] == ["bench.json"]  # the files it wrote are gone
