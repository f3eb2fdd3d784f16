"""`stpt flops`: what it counts, of names and of files, and what it refuses."""

from pathlib import Path

import pytest
from made import stpt

from stpt.models.conversion import save_network
from stpt.models.stpt import STPT


def test_the_default_network() -> None:
    """68.4 M parameters and 112.4 G: 110.4 of the backbone and 2.0 of the head."""
    said = stpt.here("flops").out
    assert "stpt, 256x96x96: 68.4 M parameters; billions of MACs" in said
    rows = {line.split("  ")[0].strip(): line.split() for line in said.splitlines()}
    assert rows["all"][-1] == "112.40" and rows["detector"][-1] == "1.99"
    assert [rows[f"stage {i}"][-1] for i in (1, 2, 3, 4)] == ["18.71", "29.75", "55.31", "6.64"]
    assert rows["stage 1"][2:5] == ["8.15", "7.25", "3.31"]


def test_other_names_and_sizes() -> None:
    assert "81.66" in stpt.here("flops", "i3d", "--backbone-only").out
    assert "256x64x32" in stpt.here("flops", "stpt_tiny", "--size", "64", "32").out
    assert "128x96x96" in stpt.here("flops", "stpt_abs", "--frames", "128").out
    assert "128x96x96" in stpt.here("flops", "stpt_tiny", "--frames", "128").out


def test_a_file_is_counted_and_run(tmp_path: Path) -> None:
    tiny = {"name": "stpt_tiny", "dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    save_network(STPT(tiny, dict(frames=128, channels=64), [32, 32]), tmp_path / "a.safetensors")
    said = stpt.here("flops", tmp_path / "a.safetensors", "--seconds", "0.2").out
    assert "a.safetensors, 128x32x32" in said
    assert "s a clip" in said and "1 threads, float32" in said
    line = stpt.refused("flops", tmp_path / "a.safetensors", "--size", "64", "64")
    assert "takes clips of 32 x 32" in line
    assert "--frames 0: give 1 or more" in stpt.refused("flops", tmp_path / "a.safetensors", "--frames", "0")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing"], "nothing is no run, folder or file, and no backbone: stpt"),
        (["--device", "tpu"], "tpu"),
        (["--frames", "0"], "clips of 0 frames and size [96, 96]"),
    ],
)
def test_bad_input(arguments: list[str], told: str) -> None:
    assert told in stpt.refused("flops", *arguments)
