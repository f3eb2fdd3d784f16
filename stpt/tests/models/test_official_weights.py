"""AFSD's checkpoints, converted files, runs' checkpoints and folders: to a network and back, strictly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made import stpt
from safetensors import safe_open
from torch import Tensor, nn
from torchvision.models.video import mvit_v1_b

from paperkit.errors import UserError
from paperkit.files.weights import read_weights, save_weights
from paperkit.training.openmmlab import read_config, write_data
from stpt.models.conversion import KEPT, load_backbone, load_network, save_network
from stpt.models.i3d import I3D
from stpt.models.networks import BACKBONES, create_backbone
from stpt.models.released import describe_released
from stpt.models.stpt import STPT

SMALL = dict(frames=128, channels=64, num_classes=5)
CLASSES = ["a", "b", "c", "d"]


def small(**settings: Any) -> STPT:
    """A small network, each weight a number of its own."""
    tiny = {"name": "stpt_tiny", "dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    network = STPT(
        **{"backbone": tiny, "detector": SMALL, "size": [32, 32], "classes": CLASSES, "fps": 10.0, **settings}
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval()


def released(path: Path, variant: str = "thumos", channels: int = 3) -> dict[str, Tensor]:
    """A file as AFSD writes one: I3D and a head of fewer channels than the published 512."""
    network = STPT({"name": "i3d", "in_channels": channels}, dict(variant=variant, channels=32, num_classes=5))
    state = {name: torch.randn_like(value) if value.is_floating_point() else value + 3
             for name, value in network.state_dict().items()}  # fmt: skip
    torch.save(state, path)
    return state


def outputs_of(network: STPT, frames: int = 128) -> dict[str, Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        return network(torch.randn(1, 3, frames, 32, 32))


def test_names_of_the_whole_detector() -> None:
    """The authors' keys, for the published sizes."""
    with torch.device("meta"):
        thumos, anet = STPT("i3d"), STPT("i3d", dict(variant="activitynet", num_classes=2, frames=768))
    head, backbone = "coarse_pyramid_detection.", "backbone._model."
    shapes = {name: tuple(value.shape) for name, value in thumos.state_dict().items()}
    assert sum(p.numel() for p in thumos.coarse_pyramid_detection.parameters()) / 1e6 == pytest.approx(32.46, abs=0.005)
    wanted: dict[str, tuple[int, ...]] = {
        "pyramids.0.0.conv3d.weight": (512, 832, 1, 6, 6),
        "pyramids.1.0.conv3d.weight": (512, 1024, 1, 3, 3),
        "loc_head.conv1d.weight": (2, 512, 3),
        "conf_head.conv1d.weight": (21, 512, 3),
        "prop_loc_head.conv1d.weight": (2, 512, 1),
        "prop_conf_head.conv1d.weight": (21, 512, 1),
        "center_head.conv1d.weight": (1, 512, 3),
    }
    wanted |= {f"pyramids.{i}.0.conv1d.weight": (512, 512, 3) for i in range(2, 6)}
    wanted |= {f"loc_heads.{i}.scale": (1,) for i in range(6)}
    norms = [f"pyramids.{i}.1" for i in range(6)]
    for tower in ("loc_tower", "conf_tower"):
        wanted |= {f"{tower}.{i}.0.conv1d.weight": (512, 512, 3) for i in range(2)}
        norms += [f"{tower}.{i}.1" for i in range(2)]
    for branch in ("loc_proposal_branch", "conf_proposal_branch"):
        for part, out, channels in (("cur_point_conv", 512, 512), ("lr_conv", 1024, 512), ("roi_conv", 512, 512),
                                    ("proposal_conv", 512, 2048)):  # fmt: skip
            wanted[f"{branch}.{part}.0.conv1d.weight"] = (out, channels, 1)
            norms.append(f"{branch}.{part}.1")
    wanted |= {f"deconv.{i}.conv1d.weight": (512, 512, 1 if i == 6 else 3) for i in (0, 3, 6)}
    norms += [f"deconv.{i}" for i in (1, 4, 7)]
    wanted |= {name.replace("weight", "bias"): shape[:1] for name, shape in wanted.items() if "conv" in name}
    for norm in norms:
        out = 1024 if "lr_conv" in norm else 512
        wanted |= {f"{norm}.weight": (out,), f"{norm}.bias": (out,)}
    assert {name.removeprefix(head): shape for name, shape in shapes.items() if not name.startswith(backbone)} == wanted
    found = {name.removeprefix(head): tuple(value.shape) for name, value in anet.state_dict().items()}
    assert found["pyramids.0.0.conv3d.weight"] == (512, 1024, 1, 3, 3)
    assert all(found[f"pyramids.{i}.0.conv1d.weight"] == (512, 512, 3) for i in range(1, 6))


@pytest.mark.parametrize(("variant", "channels"), [("thumos", 3), ("activitynet", 2)])
def test_released_file_to_a_converted_one_and_back(variant: str, channels: int, tmp_path: Path) -> None:
    state = released(tmp_path / "checkpoint-15.ckpt", variant, channels)
    stpt.here("convert", tmp_path / "checkpoint-15.ckpt", tmp_path / "a.safetensors")
    stpt.here("convert", tmp_path / "a.safetensors", tmp_path / "b.ckpt")
    again = torch.load(tmp_path / "b.ckpt", weights_only=True)
    assert again.keys() == state.keys() and all(torch.equal(again[key], state[key]) for key in state)
    settings = load_network(tmp_path / "a.safetensors").settings
    assert settings["backbone"] == {"name": "i3d", "in_channels": channels} and settings["size"] == [96, 96]
    assert settings["detector"] == dict(
        variant=variant, num_classes=5, frames=256 if variant == "thumos" else 768, levels=6, channels=32
    )


def test_every_form_gives_the_same_network(tmp_path: Path) -> None:
    network = small()
    outputs = outputs_of(network)
    for target in ("a.safetensors", "folder"):
        assert save_network(network, tmp_path / target).startswith(f"{tmp_path / target}: ")
        loaded = load_network(tmp_path / target)
        assert loaded.settings == network.settings and not loaded.training
        assert all(torch.equal(value, outputs[name]) for name, value in outputs_of(loaded).items())
    assert json.loads((tmp_path / "folder" / "config.json").read_text()) == network.settings
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert json.loads(file.metadata()["settings"])["fps"] == 10.0


def write_run(folder: Path, network: STPT, **changes: Any) -> Path:
    """A run folder as the detection engine leaves it."""
    folder.mkdir()
    settings = network.settings
    model = dict(type="STPTDetector", backbone=settings["backbone"], detector=settings["detector"])
    (folder / "a.py").write_text(f"model = {model!r}\nsize = {settings['size']!r}\nfps = 10.0\n")
    config = read_config(str(folder / "a.py"))
    config.merge_from_dict(changes)
    write_data(config, folder / KEPT)
    meta = dict(dataset_meta=dict(classes=tuple(settings["classes"])), epoch=1)
    torch.save(dict(meta=meta, state_dict=network.state_dict()), folder / "epoch_1.pth")
    return folder


def test_runs(tmp_path: Path) -> None:
    network = small()
    run = write_run(tmp_path / "run", network)
    outputs = outputs_of(network)
    for source in (run, run / "epoch_1.pth"):
        loaded = load_network(source)
        assert loaded.settings == network.settings
        assert all(torch.equal(value, outputs[name]) for name, value in outputs_of(loaded).items())
    with pytest.raises(UserError, match="describes no detector: its model is 'STPTClassifier'"):
        load_network(write_run(tmp_path / "other", network, model=dict(type="STPTClassifier", detector=None)))
    (run / "epoch_1.pth").unlink()
    with pytest.raises(UserError, match="has no whole checkpoint"):
        load_network(run)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = small().state_dict()
    lost = "coarse_pyramid_detection.loc_head.conv1d.weight"
    card = {"settings": json.dumps(small().settings)}
    for changed, metadata, told in (
        ({k: v for k, v in state.items() if k != lost}, card, f"1 missing: {lost}"),
        ({**state, "surprise": torch.ones(1)}, card, "1 unexpected: surprise"),
        ({**state, lost: torch.ones(2, 2)}, card, "1 misshapen"),
        (state, {"settings": "{"}, "settings that are no JSON"),
        (state, {"settings": "[1]"}, "settings that are a list"),
        (state, {"settings": json.dumps({"backbone": "stpt", "lr": 1})}, "unknown settings lr; known are backbone"),
        (state, {"settings": json.dumps({"backbone": "vit"})}, "backbone 'vit' is none of stpt, stpt_tiny"),
        (state, {"settings": json.dumps({"backbone": {"name": ["stpt"]}})}, r"backbone \['stpt'\] is none of stpt"),
        (state, {"settings": json.dumps({"backbone": 3})}, "setting backbone is 3; right would be a name, or options"),
        (state, {"settings": json.dumps({"size": 96})}, "setting size is 96; right would be a height and a width"),
        (state, {"settings": json.dumps({"classes": 3})}, "setting classes is 3; right would be a list of names"),
        (state, {"settings": json.dumps({"detector": {"frames": "x"}})}, "clips of x frames and size"),
        (
            state,
            {"settings": json.dumps({"backbone": {"name": "stpt", "dims": [9999] * 4}})},
            "far larger network|heads",
        ),
        (state, {}, "is no checkpoint of AFSD"),
    ):
        save_weights(tmp_path / "a.safetensors", changed, metadata)
        with pytest.raises(UserError, match=told):
            load_network(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"must be a folder, or end in \.safetensors or \.ckpt"):
        save_network(small(), tmp_path / "a.bin")
    with pytest.raises(UserError, match="3 names for 4 classes and the background"):
        small(classes=["a", "b", "c"])
    with pytest.raises(UserError, match=r"clips of 128 frames and size \[96\]: need"):
        small(size=[96])


def test_description_asks_for_afsds_names() -> None:
    with pytest.raises(UserError, match=r"x is no checkpoint of AFSD: no backbone\._model\.Conv3d_1a_7x7"):
        describe_released({"fc.weight": torch.ones(1)}, "x")


def test_backbones_from_every_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = small()
    wanted = network.backbone.state_dict()
    settings = network.settings["backbone"]
    save_network(network, tmp_path / "a.safetensors")
    save_network(network, tmp_path / "folder")
    save_weights(tmp_path / "bare.safetensors", wanted)
    flat = {name: value.sum(2) if value.ndim == 5 else value for name, value in wanted.items()}
    save_weights(tmp_path / "flat.safetensors", flat)
    for source in (write_run(tmp_path / "run", network), tmp_path / "a.safetensors", tmp_path / "folder",
                   tmp_path / "bare.safetensors"):  # fmt: skip
        backbone = create_backbone(**settings)
        load_backbone(backbone, source)
        assert all(torch.equal(value, wanted[name]) for name, value in backbone.state_dict().items())
        assert f"{len(wanted)} loaded" in capsys.readouterr().out
    backbone = create_backbone(**settings)
    load_backbone(backbone, tmp_path / "flat.safetensors", "center")
    weight = backbone.state_dict()["stages.0.patch_embed.proj.weight"]
    assert torch.equal(weight[:, :, 1], flat["stages.0.patch_embed.proj.weight"]) and not weight[:, :, 0].any()
    with pytest.raises(UserError, match="does not fit Backbone"):
        load_backbone(create_backbone(**{**settings, "depths": [2, 1, 1, 1]}), tmp_path / "folder")


def test_i3d_from_kinetics_file_and_from_afsd(tmp_path: Path) -> None:
    state = released(tmp_path / "afsd.ckpt")
    kinetics = {name.removeprefix("backbone._model."): value for name, value in state.items() if "_model." in name}
    torch.save({**kinetics, "logits.conv3d.weight": torch.ones(2), "logits.conv3d.bias": torch.ones(2)},
               tmp_path / "rgb_imagenet.pt")  # fmt: skip
    for source in ("afsd.ckpt", "rgb_imagenet.pt"):
        backbone = I3D()
        load_backbone(backbone, tmp_path / source)
        own = backbone.state_dict()
        assert all(torch.equal(own[f"_model.{name}"], value) for name, value in kinetics.items())
    with pytest.raises(UserError, match="does not fit I3D"):
        load_backbone(I3D(in_channels=2), tmp_path / "afsd.ckpt")


def test_mvit_file_by_the_command(tmp_path: Path) -> None:
    """Blocks of another width are skipped, which the line says; the result starts a run of the same backbone."""
    with torch.device("meta"):
        mvit = mvit_v1_b()
    state = {name: torch.full(value.shape, 0.5) for name, value in mvit.state_dict().items()}
    torch.save({name: value for name, value in state.items() if "blocks.1" not in name}, tmp_path / "mvit.pth")
    said = stpt.here("convert", tmp_path / "mvit.pth", tmp_path / "b.safetensors", "--mvit", "stpt_tiny").out
    assert "skipped (another shape)" in said and "left fresh" in said
    assert read_weights(tmp_path / "b.safetensors").keys() == {
        f"backbone.{name}" for name in create_backbone("stpt_tiny").state_dict()
    }
    load_backbone(create_backbone("stpt_tiny"), tmp_path / "b.safetensors")


def test_every_name_builds() -> None:
    with torch.device("meta"):
        for name in BACKBONES:
            create_backbone(name)
    with pytest.raises(UserError, match="backbone stpt: 3 heads for 4 stages"):
        create_backbone("stpt", heads=(1, 2, 3))
    with pytest.raises(UserError, match=r"backbone i3d: .*unexpected keyword argument 'kinds'"):
        create_backbone("i3d", kinds="LLGG")


@pytest.mark.parametrize("shape", [(1, 3, 64, 48, 32), (3, 64, 32, 32)])
def test_clips_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network = STPT("stpt_tiny", dict(frames=64, channels=32, groups=8), (32, 32))
        with pytest.raises(UserError, match=r"this network takes \(B, 3, T, 32, 32\)"):
            network(torch.zeros(shape))
