"""The authors' key schemes in both directions, and the files that their training leaves."""

import argparse
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from made import NETWORKS, build, randomise
from torch import Tensor

from paperkit.errors import UserError
from snnet.models.official import load_official, read_official, to_official

every_family = pytest.mark.parametrize("name", NETWORKS)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in expected.items()
    )


@every_family
def test_there_and_back(name: str) -> None:
    """Network to official file to another network: the same logits, and the same file tensor by tensor."""
    network, x = build(name)
    official = {key: value.clone() for key, value in to_official(network).items()}
    with torch.no_grad():
        expected = [network(x, i) for i in range(network.num_configurations)]
        randomise(network)
        assert not torch.allclose(network(x, 0), expected[0])
        aside = load_official(network, official, "a file")
        for i, logits in enumerate(expected):
            torch.testing.assert_close(network(x, i), logits, rtol=0, atol=0)
    assert same(to_official(network, aside), official)
    assert not aside.split_norms


def test_official_names_of_each_layout() -> None:
    """Where timm and the first homes of the anchors differ."""
    swin, levit = (set(to_official(build(name)[0])) for name in ("Swin", "LeViT"))
    assert {
        "anchors.0.layers.0.downsample.reduction.weight",
        "anchors.0.layers.2.downsample.norm.bias",
        "anchors.1.head.weight",
        "anchors.1.layers.0.blocks.1.attn_mask",
        "anchors.1.layers.2.blocks.3.attn.relative_position_index",
        "stitch_layers.2.0.0.transform.weight",
    } <= swin
    assert not any("layers.3.downsample" in key or "head.fc" in key for key in swin)
    assert {
        "anchors.0.patch_embed.6.c.weight",
        "anchors.0.blocks.4.kv.c.weight",  # depth 2: downsampling after blocks 0 to 3
        "anchors.0.blocks.4.q.1.bn.bias",
        "anchors.0.blocks.5.m.2.c.weight",
        "anchors.1.blocks.8.m.attention_bias_idxs",  # depth 3: stage 1 begins at 8
        "anchors.1.head_dist.l.bias",
        "stitch_layers.1.0.1.transform.bias",
    } <= levit


@pytest.mark.parametrize("name", ["Swin", "LeViT"])
def test_regenerated_buffers_may_be_absent_but_not_wrong(name: str) -> None:
    network, _ = build(name)
    official = to_official(network)
    ends = ("relative_position_index", "attn_mask", "attention_bias_idxs")
    buffers = [key for key in official if key.endswith(ends)]
    stripped = {key: value for key, value in official.items() if key not in buffers}
    aside = load_official(network, stripped, "a file")
    assert same(to_official(network, aside), stripped)
    wrong = {**official, buffers[0]: official[buffers[0]] + 1}
    with pytest.raises(UserError, match="made for another image or window size"):
        load_official(network, wrong, "a file")


def test_split_batch_norm_is_kept_aside() -> None:
    """ResNets trained with split BatchNorm: evaluation ignores the second set, writing the file again has it."""
    network, x = build("ResNet")
    official = {key: value.clone() for key, value in to_official(network).items()}
    split = {}
    for key, value in official.items():
        path, _, leaf = key.rpartition(".")
        if f"{path}.running_mean" in official:
            split[f"{path}.aux_bn.0.{leaf}"] = value + 1
    with torch.no_grad():
        expected = network(x, 3)
        aside = load_official(network, {**official, **split}, "a file")
        torch.testing.assert_close(network(x, 3), expected, rtol=0, atol=0)
    assert len(split) > 100 and same(aside.split_norms, split)
    assert same(to_official(network, aside), {**official, **split})
    with pytest.raises(UserError, match="unexpected"):
        load_official(network, {**official, "anchors.0.fc.aux_bn.0.weight": torch.zeros(1)}, "a file")


@every_family
def test_what_does_not_fit_is_named_and_changes_nothing(name: str) -> None:
    network, _ = build(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    official = {key: value.clone() * 2 for key, value in to_official(network).items()}
    weights = [key for key in official if key.endswith("weight")]
    gone, odd = weights[0], weights[-1]
    del official[gone]
    official[odd] = torch.zeros(1, 1)
    official["extra.weight"] = torch.zeros(1)
    buffers = to_official(network).keys() - official.keys()
    for key, value in to_official(network).items():
        if key.endswith(("relative_position_index", "attn_mask", "attention_bias_idxs")):
            official[key] = value
    with pytest.raises(UserError) as refusal:
        load_official(network, official, "a file")
    message = str(refusal.value)
    assert buffers == {gone}
    assert "1 missing" in message and "1 unexpected: extra.weight" in message and "1 misshapen" in message
    assert same(dict(network.state_dict()), before)


def test_checkpoint_of_another_family() -> None:
    with pytest.raises(UserError, match=r"missing.*unexpected"):
        load_official(build("LeViT")[0], to_official(build("Swin")[0]), "snnet_swin.pth")


@pytest.mark.parametrize("form", ["model", "state_dict", "bare"])
def test_full_training_checkpoints(form: str, tmp_path: Path) -> None:
    """DeiT and LeViT save `model` with their arguments, ResNet `state_dict`; DDP puts `module.` in front."""
    network, x = build("ResNet to Swin")
    official = {f"module.{key}": value.clone() for key, value in to_official(network).items()}
    content = (
        official if form == "bare" else {form: official, "epoch": 49, "args": argparse.Namespace(lr=1e-4, opt="sgd")}
    )
    torch.save(content, tmp_path / "official.pth")
    with torch.no_grad():
        expected = network(x, 4)
        randomise(network)
        read_official(network, tmp_path / "official.pth")
        torch.testing.assert_close(network(x, 4), expected, rtol=0, atol=0)


def test_yacs_config_needs_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Swin checkpoint holds a yacs CfgNode: the refusal names the class and the way out."""
    config = types.ModuleType("yacs.config")
    config.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", config)
    network, _ = build("Swin")
    path = tmp_path / "snnet_swin.pth"
    torch.save({"model": to_official(network), "config": config.CfgNode(lr=1e-3)}, path)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"yacs\.config\.CfgNode.*--trust-pickle"):
        read_official(network, path)
    read_official(network, path, trust_pickle=True)


class _Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    network, _ = build("plain ViT")
    torch.save({"model": to_official(network), "args": _Hostile(tmp_path / "made")}, tmp_path / "hostile.pth")
    with pytest.raises(UserError, match="mkdir"):
        read_official(network, tmp_path / "hostile.pth")
    assert not (tmp_path / "made").exists()
