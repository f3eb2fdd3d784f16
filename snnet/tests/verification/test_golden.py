"""The authors' reference files: each verifies, an altered one does not, and unknown content is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from made import here
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from paperkit.verification.verify import run
from snnet.verification.kinds import KINDS

GOLDEN_FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = sorted(GOLDEN_FOLDER.glob("*.safetensors"))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def verified(folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    save_file(dict(tensors), folder / "file.safetensors", dict(metadata))
    return run([folder / "file.safetensors"], KINDS) == 0


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_verifies(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command."""
    assert here("verify", path) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1].startswith("verified: ") and "FAIL" not in shown


FAST = [path for path in GOLDEN if not path.stem.startswith("released_")]


@pytest.mark.parametrize("path", FAST, ids=lambda path: path.stem)
def test_altered_results_fail(path: Path, tmp_path: Path) -> None:
    """The last entry of the first, the middle and the last result, moved by 1 % of the largest."""
    tensors, metadata = read(path)
    results = [name for name in tensors if name.startswith(("out.", "grad."))]
    for name in {results[0], results[len(results) // 2], results[-1]}:
        value = tensors[name].clone()
        value.view(-1)[-1] += 0.01 * value.abs().max() if value.is_floating_point() else 1
        assert not verified(tmp_path, {**tensors, name: value}, metadata), name


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_unknown_options_are_refused(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors, metadata = read(path)
    config = json.dumps({**json.loads(metadata["config"]), "surprise": 1})
    assert not verified(tmp_path, tensors, {**metadata, "config": config})
    assert "unknown option 'surprise'" in capsys.readouterr().out


@pytest.mark.parametrize("stem", ["levit2", "resnet_swin"])
def test_unknown_options_of_an_anchor_are_refused(
    stem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, metadata = read(next(path for path in GOLDEN if path.stem == stem))
    config = json.loads(metadata["config"])
    config["anchors"][1]["surprise"] = 1
    assert not verified(tmp_path, tensors, {**metadata, "config": json.dumps(config)})
    assert "unknown option 'surprise' in anchors[1]" in capsys.readouterr().out


def change(stem: str, edit: Any, tmp_path: Path) -> bool:
    """Whether the file still verifies after `edit(config)`."""
    tensors, metadata = read(next(path for path in GOLDEN if path.stem == stem))
    config = json.loads(metadata["config"])
    edit(config)
    return verified(tmp_path, tensors, {**metadata, "config": json.dumps(config)})


def test_altered_lists_fail(tmp_path: Path) -> None:
    assert not change("resnet_swin", lambda c: c["configs"][3]["stitch_cfgs"].__setitem__(0, [0, 2]), tmp_path)
    assert not change("enumeration_grid", lambda c: c["unpaired"][0]["layer_of_pair"].__setitem__(0, 1), tmp_path)
    assert not change("vit3_train_steps", lambda c: c["sampled_ids"].__setitem__(0, 0), tmp_path)
    assert not change("released_keys", lambda c: c["resnet18_swin_ti"].pop("anchors.0.fc.bias"), tmp_path)


@pytest.mark.parametrize("key", ["flops", "acc1", "acc5"])
def test_altered_released_figures_fail(key: str, tmp_path: Path) -> None:
    tensors, metadata = read(next(path for path in GOLDEN if path.stem == "released_configurations"))
    config = {"resnet18_swin_ti": json.loads(metadata["config"])["resnet18_swin_ti"]}
    kept = {name: value for name, value in tensors.items() if "resnet18_swin_ti" in name}
    assert verified(tmp_path, kept, {**metadata, "config": json.dumps(config)})
    config["resnet18_swin_ti"]["configs"][4][key] += 1
    assert not verified(tmp_path, kept, {**metadata, "config": json.dumps(config)})


def test_a_released_network_that_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = {"kind": "released_configurations", "config": json.dumps({"swin_large": {"configs": []}})}
    assert not verified(tmp_path, {"out.swin_large.flops": torch.zeros(1)}, metadata)
    assert "swin_large" in capsys.readouterr().out


def test_missing_tensors_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors, metadata = read(next(path for path in GOLDEN if path.stem == "vit3_all_pairs"))
    without = {name: value for name, value in tensors.items() if name != "in.x_init"}
    assert not verified(tmp_path, without, metadata)
    assert "missing tensor in.x_init" in capsys.readouterr().out


@pytest.mark.usefixtures("in_an_empty_folder")
def test_the_command_names_an_altered_tensor(capsys: pytest.CaptureFixture[str]) -> None:
    tensors, metadata = read(GOLDEN_FOLDER / "vit3_all_pairs.safetensors")
    name = next(key for key in tensors if key.startswith("out."))
    tensors[name].view(-1)[0] += 1e-2
    save_file(tensors, "altered.safetensors", metadata)
    assert here("verify", "altered.safetensors") == 1
    shown = capsys.readouterr().out
    bad = [line for line in shown.splitlines() if "FAIL" in line]
    assert len(bad) == 1 and name in bad[0]
    assert "1 file failed" in shown.splitlines()[-1]


@pytest.mark.usefixtures("in_an_empty_folder")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "of no sort"}, "of no sort"),
        ({"config": {"surprise": 1}}, "unknown option 'surprise'"),
    ],
)
def test_the_command_names_what_it_does_not_know(
    change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, metadata = read(GOLDEN_FOLDER / "vit3_all_pairs.safetensors")
    if "config" in change:
        change = {"config": json.dumps(json.loads(metadata["config"]) | change["config"])}
    save_file(tensors, "file.safetensors", metadata | change)
    assert here("verify", "file.safetensors") == 1
    shown = capsys.readouterr().out
    bad = [line for line in shown.splitlines() if line.startswith("FAIL file.safetensors: ")]
    assert len(bad) == 1 and message in bad[0]
    assert here("verify", "nowhere.safetensors") == 1
    assert "no such file" in capsys.readouterr().out
