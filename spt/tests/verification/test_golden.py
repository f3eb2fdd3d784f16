"""The authors' own results, recomputed: every reference file that lies here, and that a wrong one is noticed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from spt.verification.kinds import KINDS, verify

GOLDEN = sorted(path for path in (Path(__file__).parents[1] / "golden").iterdir())


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_matches_reference(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify([str(path)]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("path", [path for path in GOLDEN if path.suffix == ".safetensors"], ids=lambda path: path.stem)
def test_altered_result_fails(path: Path, tmp_path: Path) -> None:
    """A thousandth of the largest value (or one, for integers) on the last result is enough to fail."""
    tensors, metadata = _read(path)
    name = next(n for n in sorted(tensors, reverse=True) if n.startswith(("out.", "grad.")) and tensors[n].numel())
    changed = tensors[name].clone().flatten()
    changed[-1] += 1 if not changed.is_floating_point() else 0.01 * float(changed.abs().max()) + 1e-3
    tensors[name] = changed.reshape(tensors[name].shape)
    save_file(tensors, tmp_path / path.name, metadata)
    assert verify([str(tmp_path / path.name)]) == 1


@pytest.mark.parametrize(
    ("key", "value"), [("tau", 1), ("params", 0.5), ("tuned_vectors", []), ("structured_params", 7.0)]
)
def test_altered_selection_result_fails(key: str, value: object, tmp_path: Path) -> None:
    path = next(path for path in GOLDEN if path.stem.startswith("selection"))
    tensors, metadata = _read(path)
    config = json.loads(metadata["config"])
    config["results"]["0.4"][key] = value
    save_file(tensors, tmp_path / path.name, {**metadata, "config": json.dumps(config)})
    assert verify([str(tmp_path / path.name)]) == 1


def test_unknown_option_and_truncated_file_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next(path for path in GOLDEN if path.stem == "structured_lora")
    tensors, metadata = _read(path)
    config = {**json.loads(metadata["config"]), "twist": 1}
    save_file(tensors, tmp_path / "odd.safetensors", {**metadata, "config": json.dumps(config)})
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:500])
    assert verify([str(tmp_path)]) == 1
    faults = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(faults) == 2 and any("twist" in line for line in faults)


def test_both_selection_kinds_are_one_rule() -> None:
    assert KINDS["selection_from_gradients"] is KINDS["selection"]
