"""The authors' reference files: each verifies, an altered one does not, and unknown content is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from paperkit.verification.verify import run
from snnet.verification.reference_kinds import KINDS

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.safetensors"))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def verified(folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    save_file(dict(tensors), folder / "file.safetensors", dict(metadata))
    return run([folder / "file.safetensors"], KINDS) == 0


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_verifies(path: Path) -> None:
    assert run([path], KINDS) == 0


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
