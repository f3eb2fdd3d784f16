"""Released files: strict both ways, other alphas and windows refused with what fits, damaged files in one line."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from made import CONFIGS, LITV2, limited_disk, make_ade20k, write_images
from PIL import Image

from litv2.deployment.window_choice import set_window
from litv2.method.hilo import cheapest_window
from litv2.models.backbone import LITv2Backbone
from litv2.models.classifier import LITv2
from litv2.models.conversion import load_classifier, to_folder, to_released
from litv2.models.detectors import load_backbone
from litv2.models.pyramid import architecture
from litv2.models.released import fit_released, load_released, read_released
from paperkit.errors import UserError
from paperkit.testing.made_images import make_coco, make_image_folder

SMALL = dict(embed_dim=64, depths=(1, 1, 1, 1), num_heads=(2, 4, 8, 16), num_classes=5)  # head width 32, as published

TRAIN = ["train", "--config"]


def save(model: torch.nn.Module, path: Path, **beside: object) -> Path:
    torch.save({"model": {f"module.{k}": v for k, v in model.state_dict().items()}, **beside}, path)
    return path


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_convert_and_back_is_the_same_file(alpha: float, tmp_path: Path) -> None:
    model = LITv2(**SMALL, alpha=alpha)
    source = save(model, tmp_path / "released.pth", epoch=3)
    to_folder(source, tmp_path / "folder", None, None, False)
    to_released(tmp_path / "folder", tmp_path / "again.pth")
    first, second = read_released(source), read_released(tmp_path / "again.pth")
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    loaded = LITv2.from_pretrained(tmp_path / "folder")
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded(image), model.eval()(image))


def test_dense_file_keeps_neck_and_heads_aside(tmp_path: Path) -> None:
    body = LITv2Backbone(out_norms=(1, 2, 3), **{k: v for k, v in SMALL.items() if k != "num_classes"})
    state = {f"backbone.{k}": v for k, v in body.state_dict().items()}
    state["bbox_head.retina_cls.weight"] = torch.randn(3)
    torch.save({"meta": {"epoch": 1}, "state_dict": state}, tmp_path / "dense.pth")
    to_folder(tmp_path / "dense.pth", tmp_path / "folder", 4, None, False)
    to_released(tmp_path / "folder", tmp_path / "again.pth")
    again = read_released(tmp_path / "again.pth")
    assert again.keys() == state.keys() and all(torch.equal(again[k], state[k]) for k in state)


def test_classifier_fills_a_backbone(tmp_path: Path) -> None:
    path = save(LITv2(**SMALL), tmp_path / "c.pth")
    body = LITv2Backbone(**{k: v for k, v in SMALL.items() if k != "num_classes"})
    load_released(body, path)
    assert torch.equal(body.state_dict()["patch_embed.proj.weight"], read_released(path)["patch_embed.proj.weight"])
    assert torch.equal(body.norm2.weight, torch.ones(256))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("trained", "asked", "named"), [(0.9, 0.5, "alpha=0.9"), (0.5, 0.9, "alpha=0.5"), (0.5, 0, "alpha=0.5")]
)
def test_another_alpha_names_the_fitting_one(trained: float, asked: float, named: str, tmp_path: Path) -> None:
    path = save(LITv2(**SMALL, alpha=trained), tmp_path / "a.pth")
    with pytest.raises(UserError, match=named):
        load_released(LITv2(**SMALL, alpha=asked), path)
    with pytest.raises(UserError, match=named):
        to_folder(path, tmp_path / "f", None, asked, False)


def test_window_changes_freely_but_not_from_1(tmp_path: Path) -> None:
    path = save(LITv2(**SMALL), tmp_path / "w.pth")
    load_released(LITv2(**SMALL, local_ws=(0, 0, 4, 1)), path)
    with pytest.raises(UserError, match=r"window 1 .* and larger windows do not interchange"):
        load_released(LITv2(**SMALL, local_ws=(0, 0, 1, 1)), path)
    with pytest.raises(UserError, match="do not interchange"):
        load_released(LITv2(**SMALL, local_ws=(0, 0, 2, 2)), path)
    model = load_classifier(path)
    assert set_window(model, "auto", 512, 512).keys() == {2} and set_window(model, 4, 224, 224) == {2: 4}
    with pytest.raises(UserError, match="window 20 is larger than the grid of 14 x 14"):
        set_window(model, 20, 224, 224)


def test_cheapest_window_grows_with_the_grid() -> None:
    layer = LITv2(**architecture("litv2_s")).layers[2].blocks[0].attn
    chosen = [cheapest_window(layer, side, side) for side in (14, 32, 64)]
    assert chosen == [7, 8, 16]  # by the formulas of section 3.2; the two Hi-Fi heads of alpha .9 cost little


def test_litv1_table_is_resized(tmp_path: Path) -> None:
    options = dict(SMALL, attention="msa", pos="rel")
    path = save(LITv2(**options, img_size=64), tmp_path / "v1.pth")
    big = LITv2(**options, img_size=128)
    load_released(big, path)
    assert big.eval()(torch.randn(1, 3, 128, 128)).isfinite().all()
    same = LITv2(**options, img_size=64)
    assert all(torch.equal(v, read_released(path)[k]) for k, v in fit_released(read_released(path), same).items())


def test_yacs_node_is_read_without_code(tmp_path: Path) -> None:
    """Classifier files hold a pickled yacs node; a stand-in takes its place."""
    import sys
    import types

    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")

    class CfgNode(dict):
        pass

    CfgNode.__module__, CfgNode.__qualname__, module.CfgNode = "yacs.config", "CfgNode", CfgNode
    sys.modules.update({"yacs": package, "yacs.config": module})
    try:
        node = CfgNode(MODEL=CfgNode(NAME="litv2"))
        node.__dict__["__immutable__"] = True
        path = save(LITv2(**SMALL), tmp_path / "y.pth", config=node)
    finally:
        del sys.modules["yacs"], sys.modules["yacs.config"]
    assert len(read_released(path)) == len(LITv2(**SMALL).state_dict())


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    path = save(LITv2(**SMALL), tmp_path / "d.pth")
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:5000])
    (tmp_path / "other.pth").write_bytes(b"")
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "foreign.pth")
    for name in ("cut.pth", "other.pth", "foreign.pth", "missing.pth"):
        with pytest.raises(UserError) as caught:
            load_classifier(tmp_path / name)
        assert "\n" not in str(caught.value)


class _Evil:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def bad_files(tmp_path: Path) -> dict[str, Path]:
    """A file of each kind that must be refused."""
    good = save(LITv2(**SMALL), tmp_path / "good.pth")
    (tmp_path / "cut.pth").write_bytes(good.read_bytes()[:5000])
    (tmp_path / "text.pth").write_text("no checkpoint")
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "foreign.pth")
    torch.save({"model": LITv2(**SMALL).state_dict(), "config": _Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    return {name: tmp_path / f"{name}.pth" for name in ("cut", "text", "foreign", "evil", "missing")}


@pytest.mark.parametrize(
    "words",
    [["convert", "FILE", "folder"], ["export", "--ckpt", "FILE"], ["predict", "image.png", "--ckpt", "FILE"],
     ["eval", "--ckpt", "FILE", "--config", str(CONFIGS / "imagenet" / "litv2_s.yaml")],
     [*TRAIN, str(CONFIGS / "imagenet" / "litv2_s.yaml"), "--network.weights", "FILE", "--data.root", "images",
      "--data.num_classes", "2", "--trainer.precision", "32-true"],
     [*TRAIN, str(CONFIGS / "coco" / "retinanet_litv2_s_ws2.yaml"), "--detection.weights", "FILE", "--data.root",
      "coco", "--trainer.precision", "32-true"],
     [*TRAIN, str(CONFIGS / "ade20k" / "semantic_fpn_litv2_s.py"), "--cfg-options", "data_root=ade",
      "model.backbone.pretrained=FILE"],
     [*TRAIN, str(CONFIGS / "ade20k" / "semantic_fpn_litv2_s.py"), "--cfg-options", "data_root=ade", "load_from=FILE",
      "model.backbone.pretrained=None"]],
    ids=lambda words: f"{words[0]}-{Path(words[2]).stem}-{words[-1].partition('=')[0]}",
)  # fmt: skip
def test_every_door_refuses_bad_files(words: list[str], bad_files: dict[str, Path], tmp_path: Path) -> None:
    """One line each, and the pickle's code does not run."""
    if words[0] == "train":
        make_image_folder(tmp_path / "images", per_class=64)
        make_coco(tmp_path / "coco")
        make_ade20k(tmp_path / "ade")
    for name, path in bad_files.items():
        named = [word.replace("FILE", str(path)) for word in words]
        name = ["--name", name] if words[0] == "train" else []
        assert path.name in LITV2.refused(*named, *name, cwd=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_keeps_the_old_folder(tmp_path: Path) -> None:
    """By `convert` and by `save_pretrained`: config and weights stay those of one model."""
    small, large = LITv2(**{**SMALL, "embed_dim": 32}), LITv2(**SMALL)
    small.save_pretrained(tmp_path / "folder")
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()}
    save(large, tmp_path / "large.pth")
    with limited_disk(200_000):
        line = LITV2.refused("convert", "large.pth", "folder", cwd=tmp_path)
        assert line.startswith("error: cannot write") and "File too large" in line
        with pytest.raises(UserError, match="cannot write"):
            large.save_pretrained(tmp_path / "folder")
    assert {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()} == before
    assert torch.equal(LITv2.from_pretrained(tmp_path / "folder").norm.weight, small.norm.weight)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "large.pth"]
    LITV2.here("convert", "large.pth", "folder", cwd=tmp_path)
    assert torch.equal(LITv2.from_pretrained(tmp_path / "folder").head.weight, large.head.weight)
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"


def test_one_of_several_parts_is_named(tmp_path: Path) -> None:
    """Files of training hold a student and a teacher, or weights and their average."""
    student, teacher = LITv2(**SMALL), LITv2(**SMALL)
    both = {"student": student.state_dict(), "teacher": teacher.state_dict(), "epoch": 3}
    torch.save(both, tmp_path / "both.pth")
    Image.new("RGB", (80, 90)).save(tmp_path / "image.png")
    for words in (["convert", "both.pth", "f"], ["predict", "image.png", "--ckpt", "both.pth"],
                  ["export", "--ckpt", "both.pth"]):  # fmt: skip
        line = LITV2.refused(*words, cwd=tmp_path)
        assert "both.pth holds 2 state dicts: student" in line and "choose one with --part student" in line
    LITV2.here("convert", "both.pth", "folder", "--part", "teacher", cwd=tmp_path)
    assert torch.equal(LITv2.from_pretrained(tmp_path / "folder").head.weight, teacher.head.weight)
    body = LITv2Backbone(**{k: v for k, v in SMALL.items() if k != "num_classes"})
    with pytest.raises(UserError, match=r"choose one with --detection\.part student"):
        load_backbone(body, tmp_path / "both.pth")
    load_backbone(body, tmp_path / "both.pth", "student")
    assert torch.equal(body.patch_embed.proj.weight, student.patch_embed.proj.weight)
    with pytest.raises(UserError, match=r"both\.pth holds no .*ema"):
        read_released(tmp_path / "both.pth", part="ema")


@pytest.mark.parametrize(
    "wrap", [{"module": 0}, {"state_dict": 0, "epoch": 1}, {"model": 0}, {"model_ema": 0, "args": {}}]
)
def test_one_part_needs_no_name(wrap: dict[str, Any], tmp_path: Path) -> None:
    """DeepSpeed's `module`, an average alone, compiled or wrapped networks."""
    model = LITv2(**SMALL)
    state = {f"_orig_mod.{key}": tensor for key, tensor in model.state_dict().items()}
    torch.save({key: state if value == 0 else value for key, value in wrap.items()}, tmp_path / "w.pth")
    assert torch.equal(load_classifier(tmp_path / "w.pth").head.weight, model.head.weight)


def test_pickles_are_trusted_only_where_a_command_can(bad_files: dict[str, Path], tmp_path: Path) -> None:
    Image.new("RGB", (80, 90)).save(tmp_path / "image.png")
    line = LITV2.refused("predict", "image.png", "--ckpt", "evil.pth", cwd=tmp_path)
    assert line.endswith("if you trust where the file comes from, add --trust-pickle")
    write_images(tmp_path)
    words = ["train", "--config", "images.yaml", "--network.weights", "evil.pth"]
    line = LITV2.refused(*words, cwd=tmp_path)
    assert "evil.pth was not read: it wants" in line and "trust" not in line
    assert not (tmp_path / "ran").exists()


def test_other_things_than_weights_are_named(tmp_path: Path) -> None:
    pointer = tmp_path / "litv2_s.pth"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    model = LITv2(**SMALL)
    state = model.state_dict()
    state["head.weight"][3, 5] = float("nan")
    nan = save(model, tmp_path / "nan.pth")
    for path, message in ((pointer, "is a Git LFS pointer"), (nan, r"weights that are no numbers: head\.weight")):
        for read in (load_classifier, read_released):
            with pytest.raises(UserError, match=message) as caught:
                read(path)
            assert path.name in str(caught.value)


@pytest.mark.parametrize("change", [
    {"depths": [1000000, 1, 1, 1]}, {"embed_dim": 100_000}, {"num_classes": 10**9}, {"mlp_ratio": 1e6},
    {"img_size": 10**6, "attention": "msa", "pos": "rel"}, {"layers": 3}, {"num_heads": [0] * 4}, {"depths": "all"},
])  # fmt: skip
def test_a_config_cannot_ask_for_more_than_its_weights(change: dict[str, Any], tmp_path: Path) -> None:
    """Neither time nor memory, through the class or through a command."""
    LITv2(**SMALL).save_pretrained(tmp_path / "f")
    config = json.loads((tmp_path / "f" / "config.json").read_text())
    (tmp_path / "f" / "config.json").write_text(json.dumps({**config, **change}))
    start = time.process_time()
    for read in (load_classifier, LITv2.from_pretrained):
        with pytest.raises(UserError) as caught:
            read(tmp_path / "f")
        assert str(tmp_path / "f") in str(caught.value)
    assert time.process_time() - start < 20


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels(channels: int, tmp_path: Path) -> None:
    """Such a network is built and read; pictures have three."""
    model = LITv2(**SMALL, in_chans=channels)
    path = save(model, tmp_path / "c.pth")
    assert torch.equal(load_classifier(path).patch_embed.proj.weight, model.patch_embed.proj.weight)
    Image.new("L", (80, 90)).save(tmp_path / "image.png")
    line = LITV2.refused("predict", "image.png", "--ckpt", "c.pth", "--size", "64", cwd=tmp_path)
    assert f"the model takes (B, {channels}, H, W)" in line


def test_save_pretrained_keeps_a_replaced_head(tmp_path: Path) -> None:
    model = LITv2(**SMALL)
    model.reset_classifier(7)
    model.save_pretrained(tmp_path)
    assert LITv2.from_pretrained(tmp_path).head.out_features == 7
    assert "HiLo" in (tmp_path / "README.md").read_text()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no checkpoint at .*model\.safetensors"):
        LITv2.from_pretrained(tmp_path)


def test_backbone_in_a_folder(tmp_path: Path) -> None:
    options = {key: value for key, value in SMALL.items() if key != "num_classes"}
    body = LITv2Backbone(out_indices=(1, 3), out_norms=(1, 2, 3), alpha=0.5, **options).eval()
    body.save_pretrained(tmp_path)
    image = torch.randn(1, 3, 64, 96)
    for one, two in zip(body(image), LITv2Backbone.from_pretrained(tmp_path)(image), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(("name", "entries"), [("litv2_s", 219), ("litv2_m", 459), ("litv2_b", 459)])
def test_number_of_keys(name: str, entries: int) -> None:
    with torch.device("meta"):
        assert len(LITv2(**architecture(name)).state_dict()) == entries
        if name == "litv2_s":
            assert len(LITv2(**architecture(name), alpha=0.0).state_dict()) == 183
            assert len(LITv2(**architecture(name), alpha=1.0).state_dict()) == 195
