"""The authors' tensors: every kind recomputes, and every altered result is noticed."""

from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from litv2.models.classifier import LITv2
from litv2.verification.kinds import KINDS
from litv2.verification.networks import NETWORK
from paperkit.verification import verify
from paperkit.verification.verify import ReferenceFile

FILES = sorted((Path(__file__).parents[1] / "golden").glob("*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_matches_reference(path: Path) -> None:
    assert verify.run([path], KINDS) == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_altered_result_fails(path: Path, tmp_path: Path) -> None:
    """The largest entry of a result tensor moved by a thousandth of it (or of 1): verification fails."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    results = [name for name in tensors if name.startswith(("out.", "grad."))]
    for name in results[:: max(1, len(results) // 4)]:
        altered = tensors[name].clone()
        flat = altered.view(-1)
        place = flat.abs().argmax()
        flat[place] += 1e-3 * max(1.0, abs(flat[place].item())) if altered.is_floating_point() else 1
        save_file({**tensors, name: altered}, tmp_path / "altered.safetensors", metadata)
        assert verify.run([tmp_path / "altered.safetensors"], KINDS) == 1, name


def test_altered_count_fails(tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "golden" / "block_hilo.safetensors"
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata["config"] = metadata["config"].replace('"flops": 56832.0', '"flops": 56833.0')
    save_file(tensors, tmp_path / "altered.safetensors", metadata)
    assert verify.run([tmp_path / "altered.safetensors"], KINDS) == 1


@pytest.mark.parametrize("option", ["colour", "act"])
def test_unknown_option_is_named(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[1] / "golden" / "conv_ffn.safetensors"
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    import json

    metadata["config"] = json.dumps({**json.loads(metadata["config"]), option: "red"})
    save_file(tensors, tmp_path / "odd.safetensors", metadata)
    assert verify.run([tmp_path / "odd.safetensors"], KINDS) == 1
    assert option in capsys.readouterr().out


def test_float32_forward_is_close() -> None:
    """`verify` works in float64; the float32 path that users run stays within 3e-5 of the authors' outputs."""
    file = ReferenceFile.read(Path(__file__).parents[1] / "golden" / "litv2_tiny_all_hilo.safetensors", KINDS)
    model = LITv2(**{key: file.config[key] for key in NETWORK if key in file.config})
    model.load_state_dict(file.state)
    logits, reference = model.eval()(file.inputs["image_64"]), file.outputs["logits_64"]
    assert (logits - reference).abs().max() <= 3e-5 * reference.abs().max()
