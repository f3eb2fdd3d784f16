"""The other verbs: list, select, latency, predict, export, convert, verify; and one line for whatever is wrong."""

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from real_images import CLASSES, here, one_line, vit
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_networks import randomise
from timm.data import create_transform
from torch import Tensor, nn

from paperkit.data.images import ImageData
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder
from paperkit.results.metrics import Metrics
from paperkit.testing.made_images import make_image_folder
from snnet.cli import VERBS
from snnet.deployment.extraction import SubNetwork
from snnet.method.budget import OperatingPoint, select
from snnet.method.counting import configuration_macs, parameters
from snnet.models.anchors import SNNet, load_folder
from snnet.models.official import official_names, read_official, to_official
from snnet.models.released_networks import RELEASED, Released, build
from snnet.training.evaluation import mean_logits

GOLDEN = Path(__file__).parents[1] / "golden"
LEVIT = {"name": "levit_192", "img_size": 64, "key_dim": 8, "num_heads": [1, 2, 2], "depth": [2, 2, 2]}
SWIN = {"img_size": 64, "embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 1, 2, 2], "window_size": 2}
ANCHORS: dict[str, list[Any]] = {
    "vit": [vit(16), vit(32)],
    "levit": [{**LEVIT, "embed_dim": [16, 16, 16]}, {**LEVIT, "embed_dim": [16, 24, 24]}],
    "swin": [{"name": "swin_tiny_patch4_window7_224", **SWIN}, {"name": "swin_small_patch4_window7_224", **SWIN}],
    "resnet": [
        {"name": "resnet18", "channels": [8, 8, 16, 16]},
        {"name": "resnet50", "channels": [8, 8, 16, 16], "layers": [2, 3, 3, 2]},
    ],
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of `save_pretrained`, one a family."""
    folder = tmp_path_factory.mktemp("networks")
    for name in ("vit", "levit"):
        torch.manual_seed(1)
        network = SNNet(ANCHORS[name], num_classes=3)
        randomise(network)
        network.save_pretrained(folder / name)
    return folder


def costs(folder: Path, size: int = 32) -> tuple[list[int], list[int]]:
    network, _ = load_folder(folder)
    return configuration_macs(network, (3, size, size)), parameters(network)


# list, select, latency


def test_list_before_any_training(capsys: pytest.CaptureFixture[str]) -> None:
    """The network of the embedded experiment, with costs and no accuracy; nothing is written."""
    assert here("list") == 0
    shown = capsys.readouterr().out
    assert "23 configurations" in shown and "small 0-3 > middle 3-" in shown and "large" in shown
    assert not list(Path().iterdir())


def test_list_of_anchors_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert here("list", "--anchors", "[test_vit,test_vit2]", "--num_classes", "7") == 0
    network = SNNet(["test_vit", "test_vit2"], num_classes=7)
    shown = capsys.readouterr().out
    assert f"{network.num_configurations} configurations" in shown
    assert "test_vit 0-0 > test_vit2 1-" in shown


def test_list_of_a_released_network_has_the_authors_accuracies(capsys: pytest.CaptureFixture[str]) -> None:
    assert here("list", "--released", "levit_192_256") == 0
    shown = capsys.readouterr().out
    assert "measured by the authors" in shown and "79.6" in shown and "81.2" in shown
    assert here("list", "--released", "levit_192_256", "--pareto") == 0
    pareto = capsys.readouterr().out
    assert "7 configurations" in pareto or len(pareto.splitlines()) < len(shown.splitlines())


def test_select_within_budgets(networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without accuracies: the dearest that all budgets allow, on the boundary too."""
    macs, params = costs(networks / "vit")
    chosen = sorted(range(9), key=lambda i: macs[i])[4]
    assert here("select", "--ckpt", networks / "vit", "--flops", repr(float(macs[chosen]))) == 0
    assert macs[int(capsys.readouterr().out.split()[0])] == macs[chosen]
    assert here("select", "--ckpt", networks / "vit", "--params", repr(float(params[0]))) == 0
    assert int(capsys.readouterr().out.split()[0]) == 0
    assert here("select", "--ckpt", networks / "vit") == 0
    assert macs[int(capsys.readouterr().out.split()[0])] == max(macs)


def test_a_budget_that_no_stitch_meets_names_the_nearest(networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    macs, _ = costs(networks / "vit")
    cheapest = min(range(9), key=lambda i: macs[i])
    assert here("select", "--ckpt", networks / "vit", "--flops", str(macs[cheapest] - 1)) == 1
    message = one_line(capsys)
    assert f"no configuration meets flops {macs[cheapest] - 1:,.6g}" in message
    assert f"the nearest is {cheapest} (vit_tiny_patch16_224: flops {macs[cheapest]:,.6g})" in message
    assert here("select", "--ckpt", networks / "vit", "--flops", "0") == 1
    assert "the nearest is" in one_line(capsys)


def point(i: int, flops: int, params: int, acc1: float | None, latency: float | None = None) -> OperatingPoint:
    return OperatingPoint(i, f"c{i}", flops, params, acc1, latency)


POINTS = [
    point(0, 10, 5, 70.0, 1.0),
    point(1, 20, 9, 80.0, 3.0),
    point(2, 30, 6, 79.0, 2.0),
    point(3, 25, 9, 80.0, 4.0),
]


@pytest.mark.parametrize(
    ("budgets", "chosen"),
    [
        ({}, 1),  # of two equally accurate the cheaper
        ({"flops": 19}, 0),
        ({"flops": 20}, 1),
        ({"params": 8}, 2),
        ({"latency": 2.0}, 2),
        ({"flops": 25, "latency": 2.5}, 0),
        ({"flops": 30, "params": 9, "latency": 3.0}, 1),
    ],
)
def test_selection_by_accuracy(budgets: dict[str, float], chosen: int) -> None:
    assert select(POINTS, **budgets) == chosen


def test_selection_without_figures() -> None:
    unknown = [point(p.config_id, p.flops, p.params, None) for p in POINTS]
    assert select(unknown, flops=29) == 3
    with pytest.raises(UserError, match="no latencies are known"):
        select(unknown, latency=5)
    with pytest.raises(UserError, match=r"the nearest is 2 \(c2: params 6, latency 2\)"):
        select(POINTS[1:], params=5.9, latency=2)


def test_latency_then_select(networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = networks / "vit"
    (folder / "latency.json").unlink(missing_ok=True)
    assert here("select", "--ckpt", folder, "--latency", "5") == 1
    assert "measure them on this machine with `snnet latency`" in one_line(capsys)
    assert here("latency", "--ckpt", folder, "--seconds", "0.001") == 0
    kept = json.loads((folder / "latency.json").read_text())
    measured = {int(i): value for i, value in kept["milliseconds"].items()}
    assert sorted(measured) == list(range(9)) and all(0 < value < 10_000 for value in measured.values())
    assert kept["threads"] == 1
    capsys.readouterr()
    limit = sorted(measured.values())[3]
    assert here("select", "--ckpt", folder, "--latency", repr(limit)) == 0
    macs, _ = costs(folder)
    allowed = [i for i in range(9) if measured[i] <= limit]
    assert macs[int(capsys.readouterr().out.split()[0])] == max(macs[i] for i in allowed)
    assert here("select", "--ckpt", folder, "--latency", repr(min(measured.values()) / 2)) == 1
    assert "no configuration meets latency" in one_line(capsys)
    (folder / "latency.json").unlink()


# predict


def scores_of(shown: str) -> list[list[tuple[str, float]]]:
    """Per printed line, (class name, percent)."""
    return [
        [(name, float(score)) for name, score, _ in (part.rsplit(" ", 2) for part in line.split(": ")[1].split(", "))]
        for line in shown.splitlines()
    ]


def test_predict(networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line an image, in order, under the transform of the anchors' timm configuration."""
    images = sorted((make_image_folder(tmp_path / "images", CLASSES, per_class=1) / "val").rglob("*.JPEG"))
    assert here("predict", *images, "--ckpt", networks / "vit", "--config-id", "3", "--top", "2") == 0
    shown = scores_of(capsys.readouterr().out)
    network, _ = load_folder(networks / "vit")
    transform: Any = create_transform(
        (3, 32, 32), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.9, is_training=False
    )
    assert len(shown) == 3
    for path, found in zip(images, shown, strict=True):
        with torch.no_grad():
            expected = network.eval()(transform(Image.open(path).convert("RGB"))[None], 3).softmax(-1)[0]
        best = expected.argsort(descending=True)[:2].tolist()
        assert [name for name, _ in found] == [str(i) for i in best]
        assert [score for _, score in found] == pytest.approx([100 * expected[i].item() for i in best], abs=0.051)


def test_predict_as_a_run_saw_its_images(networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run folder brings its classes' names, its crop and its normalisation."""
    images = make_image_folder(tmp_path / "images", CLASSES, per_class=1, size=64)
    run = RunFolder.create(tmp_path / "runs", "snnet", "run")
    seen = {"crop_pct": 0.5, "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3], "eval_interpolation": "bilinear"}
    options = {"root": str(images), "num_classes": 3, "input_size": 32, "batch_size": 3, **seen}
    run.write_config({"data": options})
    shutil.copytree(networks / "vit", run.path / "network")
    (run.path / "classes.json").write_text(json.dumps(CLASSES))
    run.mark_finished()
    paths = sorted((images / "val").rglob("*.JPEG"))
    assert here("predict", *paths, "--config-id", "8", "--top", "1") == 0
    shown = scores_of(capsys.readouterr().out)
    data = ImageData(**options, num_workers=0)  # type: ignore[arg-type]
    data.setup()
    network, _ = load_folder(networks / "vit")
    with torch.no_grad():
        expected = network.eval()(next(iter(data.val_dataloader()))[0], 8).softmax(-1)
    assert [found[0][0] for found in shown] == [CLASSES[i] for i in expected.argmax(1)]
    assert [found[0][1] for found in shown] == pytest.approx((100 * expected.max(1).values).tolist(), abs=0.051)


def test_a_run_shows_its_accuracies(networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """list and select on the newest finished run, with what its evaluation found."""
    run = RunFolder.create(tmp_path / "runs", "snnet", "run")
    run.write_config({"data": {"root": "images"}})
    shutil.copytree(networks / "vit", run.path / "network")
    extra = {"data": "some images", "configurations": [{"id": i, "acc1": 90.0 - i} for i in range(9)]}
    Metrics("snnet", "snnet eval", [0], 1.0, [], [], extra).write(run.path / "metrics.json")
    run.mark_finished()
    assert here("list") == 0
    shown = capsys.readouterr().out
    assert "accuracy: some images" in shown and shown.count("*") == 1  # id 0 is the cheapest and the best
    assert shown.splitlines()[-1].split()[-1] == "82"
    assert here("select") == 0
    assert capsys.readouterr().out.startswith("0  ")


# export


@pytest.mark.xdist_group("export")
@pytest.mark.parametrize(("family", "config_id", "size"), [("vit", 4, 32), ("levit", 2, 64)])
def test_export_onnx(
    family: str, config_id: int, size: int, networks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """onnxruntime's logits are the network's, for every size of batch."""
    import onnxruntime

    words = ["--ckpt", networks / family, "--config-id", str(config_id), "--format", "onnx", "--output", "out"]
    assert here("export", *words) == 0
    assert "largest difference" in capsys.readouterr().out
    network, _ = load_folder(networks / family)
    session = onnxruntime.InferenceSession("out/model.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, size, size)
        (found,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            expected = mean_logits(network.eval()(images, config_id))
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, mean_logits(network(images, 0)), atol=1e-2)


@pytest.mark.xdist_group("export")
@pytest.mark.parametrize(("family", "config_id", "size"), [("vit", 4, 32), ("levit", 2, 64)])
def test_export_torch(family: str, config_id: int, size: int, networks: Path) -> None:
    """A torch.export program and an extracted folder, with only the parameters of that stitch."""
    assert here("export", "--ckpt", networks / family, "--config-id", str(config_id), "--output", "out") == 0
    network, _ = load_folder(networks / family)
    program = torch.export.load("out/model.pt2")
    counted = parameters(network)[config_id]
    assert sum(p.numel() for p in program.parameters()) == counted
    alone = SubNetwork.load(Path("out"))
    for batch in (1, 4):
        images = torch.randn(batch, 3, size, size)
        with torch.no_grad():
            expected = mean_logits(network.eval()(images, config_id))
            torch.testing.assert_close(program.module()(images), expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(alone(images), expected, rtol=1e-5, atol=1e-5)


# convert


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks among the released ones, by the names of their families."""
    for name, anchors in ANCHORS.items():
        entry = Released(tuple(anchors), f"{name}_release.pth", stitched_final_norm=name != "vit")
        monkeypatch.setitem(RELEASED, name, entry)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize("name", ANCHORS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_convert_there_and_back(name: str, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The authors' file to a folder and back: tensor by tensor the same; in between, the network with its weights."""
    network = build(name)
    randomise(network)
    official = {key: value.clone() for key, value in to_official(network).items()}
    split = {}
    if name == "resnet":  # trained with split BatchNorm: a second set beside each norm
        split = {
            key.replace("bn1.", "bn1.aux_bn.0."): value + 1
            for key, value in official.items()
            if key.startswith("anchors.0.bn1.")
        }
    torch.save({"model": official | split, "epoch": 3}, f"{name}_release.pth")
    assert here("convert", f"{name}_release.pth", "folder") == 0
    shown = capsys.readouterr().out
    assert f"{network.num_configurations} configurations of {name}" in shown
    assert ("split BatchNorm" in shown) == bool(split)
    loaded, _ = load_folder(Path("folder"))
    assert same(loaded.state_dict(), network.state_dict())
    assert loaded.stitched_final_norm == (name != "vit")
    assert here("convert", "folder", f"back{suffix}") == 0
    back = torch.load("back.pth", weights_only=True)["model"] if suffix == ".pth" else load_file(f"back{suffix}")
    assert same(back, official | split)


@pytest.mark.usefixtures("released")
def test_convert_by_the_library(tmp_path: Path) -> None:
    """What the command does, in Python: read_official and to_official on a network of one's own."""
    network = build("swin")
    randomise(network)
    torch.save({"state_dict": {f"module.{k}": v for k, v in to_official(network).items()}}, "file.pth")
    other = build("swin")
    aside = read_official(other, "file.pth")
    assert same(other.state_dict(), network.state_dict())
    assert same(to_official(other, aside), to_official(network))
    assert set(official_names(network)) == set(network.state_dict())


@pytest.mark.usefixtures("released")
def test_what_convert_refuses(networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": to_official(build("swin"))}, "some.pth")
    assert here("convert", "some.pth", "folder") == 1
    assert "say with --released which SN-Net some.pth is of" in one_line(capsys)
    assert here("convert", "some.pth", "folder", "--released", "vit") == 1
    message = one_line(capsys)
    assert "some.pth" in message and "missing" in message and "unexpected" in message
    assert here("convert", "some.pth", "folder", "--released", "giant") == 1
    assert "no released SN-Net is called 'giant'" in one_line(capsys)
    assert not Path("folder").exists()
    assert here("convert", networks / "vit", "back.txt") == 1
    assert "ends in .pth or .safetensors" in one_line(capsys)
    Path("empty").mkdir()
    assert here("convert", "empty", "back.pth") == 1
    assert "has no config.json" in one_line(capsys)


# verify


def golden(stem: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(GOLDEN / f"{stem}.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_verify_passes(capsys: pytest.CaptureFixture[str]) -> None:
    """On files of every size that is quick; test_reference takes all of them."""
    files = [path for path in sorted(GOLDEN.glob("*.safetensors")) if not path.stem.startswith("released_")]
    assert len(files) >= 7
    assert here("verify", *files) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1].startswith("verified: ") and "FAIL" not in shown


def test_verify_fails_on_an_altered_tensor(capsys: pytest.CaptureFixture[str]) -> None:
    tensors, metadata = golden("vit3_all_pairs")
    name = next(key for key in tensors if key.startswith("out."))
    tensors[name].view(-1)[0] += 1e-2
    save_file(tensors, "altered.safetensors", metadata)
    assert here("verify", "altered.safetensors") == 1
    shown = capsys.readouterr().out
    bad = [line for line in shown.splitlines() if "FAIL" in line]
    assert len(bad) == 1 and name in bad[0]
    assert "1 file failed" in shown.splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "of no sort"}, "of no sort"),
        ({"config": {"surprise": 1}}, "unknown option 'surprise'"),
    ],
)
def test_verify_fails_on_what_it_does_not_know(
    change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, metadata = golden("vit3_all_pairs")
    if "config" in change:
        change = {"config": json.dumps(json.loads(metadata["config"]) | change["config"])}
    save_file(tensors, "file.safetensors", metadata | change)
    assert here("verify", "file.safetensors") == 1
    shown = capsys.readouterr().out
    bad = [line for line in shown.splitlines() if line.startswith("FAIL file.safetensors: ")]
    assert len(bad) == 1 and message in bad[0]
    assert here("verify", "nowhere.safetensors") == 1
    assert "no such file" in capsys.readouterr().out


# help and bad input


def test_help_of_every_verb_is_quick() -> None:
    """A process of its own each, under two seconds of processor time, and no torch in it."""
    script = (
        "import sys\nfrom snnet.cli import main\ntry: main()\n"
        "except SystemExit as end: code = end.code\n"
        "print('torch' in sys.modules, 'timm' in sys.modules, file=sys.stderr)\nsys.exit(code)"
    )
    for words in ([], ["--help"], *([verb, "--help"] for verb in VERBS)):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=120)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert (done.returncode, done.stderr) == (0, "False False\n"), (words, done.stderr)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0, words
        assert "usage: snnet" in done.stdout
        if not words:
            assert all(verb in done.stdout for verb in VERBS)


def test_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert here("tran") == 2
    assert "snnet has no verb 'tran'; it has: train, eval" in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["list", "--anchors", "[test_vit,test_convnext]"], 1, "no family of anchors takes a ConvNeXt"),
        (["list", "--anchors", "[test_vit2,test_vit]"], 1, "anchors must go from fast to slow: anchor 0 has"),
        (["list", "--anchors", "[deit_tiny_patch16_224,deit_tiny_distilled_patch16_224]"], 1, "VisionTransformerDist"),
        (["list", "--anchors", "[vit_tiny_patch16_224,vit_small_patch32_224]"], 1, "lay out their activations differ"),
        (["list", "--anchors", "[test_vit,test_resnet]"], 1, "a plain ViT (anchor 0) does not stitch to a ResNet"),
        (["list", "--anchors", "[test_vitt]"], 1, "timm has no model 'test_vitt'"),
        (["list", "--anchors", "[]"], 1, "an SN-Net needs at least one anchor"),
        (["list", "--released", "swin_large"], 1, "no released SN-Net is called 'swin_large'; there are deit_ti_s_b"),
        (["list", "--ckpt", "nowhere"], 1, "no network at nowhere"),
        (["list", "--surprise"], 2, "surprise"),
        (["list", "--num_classes", "many"], 2, "many"),
        (["export", "--anchors", "[test_vit,test_vit2]"], 2, "config_id"),
        (
            ["export", "--anchors", "[test_vit,test_vit2]", "--config-id", "99"],
            1,
            "no configuration 99; this network has 0 to",
        ),
        (["export", "--anchors", "[test_vit,test_vit2]", "--config-id", "1", "--format", "tflite"], 2, "tflite"),
        (["predict", "nowhere.png", "--anchors", "[test_vit,test_vit2]"], 1, "no image at nowhere.png"),
        (["predict", "x.png", "--anchors", "[test_vit,test_vit2]", "--config-id", "-1"], 1, "no configuration -1"),
        (["eval"], 1, "no finished run in runs/snnet"),
        (["eval", "--ckpt", "nowhere"], 1, "no checkpoint at nowhere"),
        (["figures", "nowhere"], 1, "no checkpoint at nowhere"),
        (["figures"], 1, "no finished run"),
        (["train", "--resume"], 1, "no unfinished run in runs/snnet"),
        (["train", "--resume", "nowhere"], 1, "no run folder at runs/snnet/nowhere"),
        (["train", "--config", "nowhere.yaml"], 1, "cannot read the config nowhere.yaml"),
        (["train", "--joint_epochs", "few"], 2, "few"),
    ],
    ids=lambda value: "-".join(value)[:60] if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(
    words: Sequence[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(*words) == code
    assert message in one_line(capsys)
    assert not list(Path().iterdir()), "nothing may be left behind"


def test_run_folders_that_are_none(networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert here("eval", "--ckpt", "empty") == 1
    assert "is not a run folder" in one_line(capsys)
    assert here("list", "--ckpt", "empty") == 1
    assert "neither a run folder nor a folder with config.json" in one_line(capsys)
    assert here("train", "--resume", "empty") == 1
    assert "is not a run folder" in one_line(capsys)
    assert here("list", "--ckpt", networks / "vit" / "model.safetensors") == 1
    assert "say of which network with --released NAME or --anchors" in one_line(capsys)
    run = RunFolder.create("runs", "snnet", "run")
    run.write_config({"data": {}})
    run.mark_finished()
    assert here("eval") == 1
    assert "the run did not get that far" in one_line(capsys)
    assert here("list") == 1
    assert "config.json" in one_line(capsys)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_weights(keep: float, networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(networks / "vit", "cut")
    whole = Path("cut/model.safetensors").read_bytes()
    Path("cut/model.safetensors").write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    assert here("list", "--ckpt", "cut") == 1
    assert "cut/model.safetensors" in one_line(capsys)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_checkpoint(share: float, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": SNNet(["test_vit", "test_vit2"]).state_dict()}, "cut.pth")
    whole = Path("cut.pth").read_bytes()
    Path("cut.pth").write_bytes(whole[: int(share * len(whole))])
    assert here("list", "--anchors", "[test_vit,test_vit2]", "--ckpt", "cut.pth") == 1
    assert "cut.pth" in one_line(capsys)


def test_checkpoint_of_another_family(networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = networks / "levit" / "model.safetensors"
    assert here("list", "--anchors", "[test_vit,test_vit2]", "--ckpt", foreign) == 1
    message = one_line(capsys)
    assert "missing" in message and "unexpected" in message and "anchors." in message
    assert here("list", "--anchors", "[test_vit,test_vit2]", "--num_classes", "5", "--ckpt", thousand()) == 1
    assert "anchors.0.head.weight" in one_line(capsys)


def thousand() -> Path:
    torch.save(SNNet(["test_vit", "test_vit2"]).state_dict(), "thousand.pth")
    return Path("thousand.pth")


class Hostile:
    """Unpickled without care, makes a file."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_hostile_pickle_runs_only_when_trusted(protocol: int, capsys: pytest.CaptureFixture[str]) -> None:
    network = SNNet(["test_vit", "test_vit2"])
    torch.save({"model": network.state_dict(), "args": Hostile()}, "hostile.pth", pickle_protocol=protocol)
    words = ["list", "--anchors", "[test_vit,test_vit2]", "--ckpt", "hostile.pth"]
    assert here(*words) == 1
    message = one_line(capsys)
    assert "mkdir" in message and "--trust-pickle" in message
    assert not Path("pwned").exists()
    assert here(*words, "--trust-pickle") == 0
    assert Path("pwned").exists()


def test_a_bare_pickle(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bare.pth").write_bytes(pickle.dumps({"model": Hostile()}))
    assert here("list", "--anchors", "[test_vit,test_vit2]", "--ckpt", "bare.pth") == 1
    assert "bare.pth" in one_line(capsys)
    assert not Path("pwned").exists()


def test_an_image_that_is_none(networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("note.png").write_text("not a picture")
    assert here("predict", "note.png", "--ckpt", networks / "vit") == 1
    assert "note.png is no readable image" in one_line(capsys)


def test_a_wrong_export_is_not_passed_on(
    networks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the file read back differs from the network, the command fails and says so."""
    monkeypatch.setattr("snnet.deployment.export.export_torch", lambda model, size, path: 0.5)
    assert here("export", "--ckpt", networks / "vit", "--config-id", "1", "--output", "out") == 1
    assert "differs from the network by 0.5; do not use out/model.pt2" in one_line(capsys)
    assert isinstance(SubNetwork.load(Path("out")), nn.Module)
