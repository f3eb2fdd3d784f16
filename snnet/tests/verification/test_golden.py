"""The authors' reference files: each verifies, an altered one does not, and unknown content is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made import SNNET
from safetensors.torch import save_file

from paperkit.testing.golden import (
    altered_results,
    changed,
    check_altered_results_fail,
    check_unknown_option_is_refused,
    each_golden,
    read_golden,
)
from paperkit.verification.verify import run
from snnet.verification.kinds import KINDS

GOLDEN = Path(__file__).parents[1] / "golden"


def verified(path: Path) -> bool:
    return run([path], KINDS) == 0


@each_golden(GOLDEN)
def test_verifies(path: Path) -> None:
    assert SNNET.here("verify", path).out.splitlines()[-1].startswith("verified: ")


@each_golden(GOLDEN, but=("released_*",))
def test_altered_results_fail(path: Path, tmp_path: Path) -> None:
    check_altered_results_fail(path, KINDS, tmp_path, most=3)


@each_golden(GOLDEN)
def test_unknown_options_are_refused(path: Path, tmp_path: Path) -> None:
    check_unknown_option_is_refused(path, KINDS, tmp_path)


@pytest.mark.parametrize("stem", ["levit2", "resnet_swin"])
def test_unknown_options_of_an_anchor_are_refused(
    stem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not change(stem, lambda config: config["anchors"][1].update(surprise=1), tmp_path)
    assert "unknown option 'surprise' in anchors[1]" in capsys.readouterr().out


def change(stem: str, edit: Any, tmp_path: Path) -> bool:
    """Whether the file still verifies after `edit(config)`."""
    return verified(changed(GOLDEN / f"{stem}.safetensors", tmp_path, config=edit))


def test_altered_lists_fail(tmp_path: Path) -> None:
    assert not change("resnet_swin", lambda c: c["configs"][3]["stitch_cfgs"].__setitem__(0, [0, 2]), tmp_path)
    assert not change("enumeration_grid", lambda c: c["unpaired"][0]["layer_of_pair"].__setitem__(0, 1), tmp_path)
    assert not change("vit3_train_steps", lambda c: c["sampled_ids"].__setitem__(0, 0), tmp_path)
    assert not change("released_keys", lambda c: c["resnet18_swin_ti"].pop("anchors.0.fc.bias"), tmp_path)


@pytest.mark.parametrize("key", ["flops", "acc1", "acc5"])
def test_altered_released_figures_fail(key: str, tmp_path: Path) -> None:
    path = GOLDEN / "released_configurations.safetensors"
    others = {name: None for name in read_golden(path)[0] if "resnet18_swin_ti" not in name}

    def only(config: dict[str, Any]) -> None:
        kept = config["resnet18_swin_ti"]
        config.clear()
        config["resnet18_swin_ti"] = kept

    def altered(config: dict[str, Any]) -> None:
        only(config)
        config["resnet18_swin_ti"]["configs"][4][key] += 1

    assert verified(changed(path, tmp_path, tensors=others, config=only))
    assert not verified(changed(path, tmp_path, tensors=others, config=altered))


def test_a_released_network_that_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = {"kind": "released_configurations", "config": json.dumps({"swin_large": {"configs": []}})}
    save_file({"out.swin_large.flops": torch.zeros(1)}, tmp_path / "file.safetensors", metadata)
    assert not verified(tmp_path / "file.safetensors")
    assert "swin_large" in capsys.readouterr().out


def test_missing_tensors_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not verified(changed(GOLDEN / "vit3_all_pairs.safetensors", tmp_path, tensors={"in.x_init": None}))
    assert "missing tensor in.x_init" in capsys.readouterr().out


def test_the_command_names_what_fails(tmp_path: Path) -> None:
    """An altered tensor, a kind that it does not know, a file that is not there."""
    path = GOLDEN / "vit3_all_pairs.safetensors"
    name, value = next(altered_results(path))
    shown = SNNET.here("verify", changed(path, tmp_path, tensors={name: value}), code=1).out
    bad = [line for line in shown.splitlines() if "FAIL" in line]
    assert len(bad) == 1 and name in bad[0] and "1 file failed" in shown.splitlines()[-1]
    shown = SNNET.here("verify", changed(path, tmp_path, metadata={"kind": "of no sort"}), code=1).out
    bad = [line for line in shown.splitlines() if line.startswith("FAIL ")]
    assert len(bad) == 1 and "of no sort" in bad[0]
    assert "no such file" in SNNET.here("verify", "nowhere.safetensors", code=1).out
