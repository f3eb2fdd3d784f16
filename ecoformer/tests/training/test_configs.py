"""Every recipe: the published numbers, and one optimiser step of a small network on made data."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from made import CONFIGS, CPU, SHRINK, make_task, merged, options_of, write_yaml

from ecoformer.method.attention import eco_layers, start_epoch
from ecoformer.models.architectures import build as build_by_name
from ecoformer.training import images, lra
from ecoformer.training.encoder import sinusoids
from paperkit.files.runs import RunFolder
from paperkit.testing.made_images import make_image_folder
from paperkit.training.classification import classification_loss
from paperkit.training.optim import build

IMAGENET, LRA = CONFIGS / "imagenet", CONFIGS / "lra"
STAGES = {
    # lr per 512, warm-up from, epochs, clipping, copies of an image, parameters
    "pvt_1_msa": (5e-5, 1e-7, 100, None, 3, 3.198e6),
    "pvt_2_ecoformer": (5e-5, 1e-7, 30, None, 3, 3.136e6),
    "twins_1_msa": (5e-5, 1e-7, 100, 5.0, 1, 22.221e6),
    "twins_2_ecoformer": (25e-5, 5e-7, 30, 5.0, 1, 21.522e6),
}
OVERLAYS = sorted([*(IMAGENET / "variants").glob("*.yaml"), *(IMAGENET / "data").glob("*.yaml")])
SIZES = {"pvt_v2_b1": 11.891, "pvt_v2_b2": 20.368, "pvt_v2_b3": 34.084, "pvt_v2_b4": 45.666, "pvt_v2_b5": None,
         "alt_gvt_base": 46.818, "alt_gvt_large": 82.830}  # fmt: skip
TASKS = {
    # layers, heads, dim, inner, mlp, length, pooling; lr, warm-up, length of the run, decay, batch
    "listops": ((4, 8, 512, 512, 1024, 2000, "cls"), (0.05, 1000, 5000, 0.1, 32)),
    "text": ((4, 4, 256, 256, 1024, 1000, "cls"), (0.05, 8000, 20000, 0.1, 32)),
    "retrieval": ((4, 4, 128, 128, 512, 4000, "cls"), (0.05, 8000, 5000, 0.1, 32)),
    "image": ((1, 1, 32, 32, 64, 1024, "cls"), (5e-4, 1, 200, 0.0, 256)),
    "pathfinder": ((4, 4, 32, 16, 32, 1024, "mean"), (1e-3, 1, 200, 0.0, 512)),
}


def test_every_file_is_known_and_opens_with_its_command() -> None:
    for path in CONFIGS.rglob("*.yaml"):
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert any(line.startswith("# Command:  make ecoformer-train CONFIG=ecoformer/configs/") for line in head), path
        assert any(line.startswith("# Paper:") for line in head), path
        assert any(line.startswith("# Measured here: ") for line in head), path
        assert f"/{path.stem}.yaml" in "\n".join(head), path
        assert yaml.safe_load(path.read_text())["engine"] == ("lra" if LRA in path.parents else "images")
    assert {path.stem for path in IMAGENET.glob("*.yaml")} == set(STAGES)
    assert {path.stem for path in (IMAGENET / "sizes").glob("*.yaml")} == set(SIZES)
    assert {path.stem for path in LRA.glob("*.yaml")} == {*TASKS, "text_4k", "listops_short"}


@pytest.mark.parametrize("stage", STAGES)
def test_stage_as_published(stage: str, tmp_path: Path) -> None:
    classes = write_yaml(tmp_path / "classes.yaml", {"data": {"num_classes": 1000}})  # no folder tells them here
    made = options_of(images, IMAGENET / f"{stage}.yaml", classes)
    lr, warm, epochs, clip, repeats, parameters = STAGES[stage]
    trainer, data, tuning = made.trainer, made.data, made.tuning
    assert (trainer.max_epochs, trainer.gradient_clip_val, trainer.precision) == (epochs, clip, "16-mixed")
    assert (data.batch_size, data.eval_batch_size, data.repeats, data.input_size) == (32, 48, repeats, 224)
    assert data.eval_transform.transforms[0].size in (256, [256])
    assert (tuning.mixup, tuning.cutmix, tuning.switch_prob, tuning.smoothing) == (0.8, 1.0, 0.5, 0.1)
    assert tuning.eval_mode is True and made.ema.decay is None
    if "ecoformer" in stage:
        h = made.hash
        assert (h.nbits, h.supports, h.topk, h.bias_mode, h.fit, h.iterations) == (
            16,
            25,
            10,
            "released",
            "released",
            100,
        )
        assert h.fit_lr == 0.0005 and tuning.refit_every == 300
    trainer.precision, made.network.weights = None, None  # this machine may be a CPU, and holds no stage 1
    images.check(made, None)
    with torch.device("meta"):
        network = type(made.network)(made.network.name, made.network.attention)
        model = images.build_network(network, made.hash, 1000)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, abs=500)
    optimizer, schedule = build(model, made.optim, 5004, epochs, global_batch=256)
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert set(groups) == {0.05, 0.0} and all(p.ndim > 1 for p in groups[0.05])
    assert all(p.ndim <= 1 for p in groups[0.0])
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["eps"] == 1e-8
    top = lr * 256 / 512
    for done in range(epochs):  # the epoch that follows; its rate was set with the index of the one before
        schedule.advance(done)
        t = max(done - 1, 0)
        rise = warm + t * (top - warm) / 5
        fall = 1e-6 + (top - 1e-6) * (1 + math.cos(math.pi * t / epochs)) / 2
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rise if t < 5 else fall)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and small weights of the unmodified networks and of full attention."""
    folder = tmp_path_factory.mktemp("configs")
    make_image_folder(folder / "images", per_class=4)
    torch.manual_seed(0)
    for name in ("pvt_v2_b0", "alt_gvt_small"):
        for form in ("sra", "msa"):
            build_by_name(f"{name}_{form}", **SHRINK, num_classes=2).save_pretrained(folder / f"{name}_{form}")
    return folder


def small(world: Path, *paths: Path) -> dict[str, Any]:
    """A recipe's own options; only the network, the batch and the images are small."""
    content = merged(*paths)
    network = content["network"]
    network["options"] = SHRINK
    network["weights"] = str(world / ("{name}_sra" if network["weights"] == "timm" else "{name}_msa"))
    content["data"].update(root=str(world / "images"), batch_size=8, num_workers=0, num_classes=2, input_size=64)
    content["data"]["dataset"] = "imagenet"
    content.setdefault("hash", {}).update(supports=12, topk=4, iterations=5)
    content["trainer"].update(CPU, max_epochs=1)
    content["optim"]["warmup_epochs"] = 0
    return content


@pytest.mark.parametrize("stage", STAGES)
def test_one_step_of_a_stage(stage: str, world: Path, tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "small.yaml", small(world, IMAGENET / f"{stage}.yaml"))
    run = RunFolder.create(tmp_path / "runs", "ecoformer", "one")
    training = images.train(run, options_of(images, path), resuming=False)
    assert training.trainer.global_step == 1 and not training.network.training
    assert (run.path / "model" / "model.safetensors").is_file() and (run.path / "metrics.json").is_file()


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_one_step_of_an_overlay(overlay: Path, world: Path, tmp_path: Path) -> None:
    """Over stage 2 as it says; by hand, without a Trainer."""
    made = options_of(
        images, write_yaml(tmp_path / "small.yaml", small(world, IMAGENET / "pvt_2_ecoformer.yaml", overlay))
    )
    model = images.build_network(made.network, made.hash, 2).eval()
    layers = [layer for _, layer in eco_layers(model)]
    assert bool(layers) == (overlay.stem not in ("shared_qk", "performer", "sra"))
    start_epoch(model, 0, made.tuning.refit_every)
    optimizer, _ = build(model, made.optim, 1, 30, global_batch=256)
    before = [p.clone() for p in model.parameters()]
    torch.manual_seed(1)
    classification_loss(model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 0, 1]), 0.1).backward()
    optimizer.step()
    assert all(layer.ksh.is_fitted for layer in layers)
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    content = yaml.safe_load(overlay.read_text())
    for key, value in content.get("hash", {}).items():
        assert getattr(made.hash, key) == (12 if key == "supports" else value)
    if "nbits" in content.get("hash", {}):
        assert layers[0].ksh.nbits == content["hash"]["nbits"]


@pytest.mark.parametrize("name", SIZES)
def test_size_over_both_stages(name: str) -> None:
    base = "pvt" if name.startswith("pvt") else "twins"
    for stage in ("1_msa", "2_ecoformer"):
        made = options_of(images, IMAGENET / f"{base}_{stage}.yaml", IMAGENET / "sizes" / f"{name}.yaml")
        assert made.network.name == name and made.network.attention in stage
    with torch.device("meta"):
        model = images.build_network(type(made.network)(name), made.hash, 1000)
    if SIZES[name] is not None:
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(SIZES[name], abs=5e-4)


@pytest.mark.parametrize("task", TASKS)
def test_task_of_the_arena(task: str) -> None:
    made = options_of(lra, LRA / f"{task}.yaml")
    shape, (lr, warmup, length, decay, batch) = TASKS[task]
    n, d, r = made.network, made.data, made.recipe
    assert (n.layers, n.heads, n.dim, n.inner, n.mlp, d.max_length, n.pooling) == shape
    assert (d.task, d.batch_size, r.lr, r.weight_decay) == (task, batch, lr, decay)
    assert n.dropout == (0.2 if task == "pathfinder" else 0.1)
    d.source = "generator"  # whose data are not looked for
    lra.check(made, None)
    with torch.device("meta"):
        network = lra.build_encoder(n, made.hash, d)
    training = lra.SequenceTraining(network, r, 312, 2)
    optimizer = training.configure_optimizers()["optimizer"]
    curve = [r.factor(t, training.warmup, training.total) * r.lr for t in range(training.total)]
    if r.schedule == "rsqrt":
        assert (training.warmup, training.total) == (warmup, length)
        assert curve[warmup // 2] == pytest.approx(lr / 2 / warmup**0.5) and max(curve) <= lr / warmup**0.5
        if length > warmup:
            assert curve[-1] == pytest.approx(lr / (length - 1) ** 0.5)
    else:
        assert (training.warmup, training.total) == (312 * warmup, 312 * length)
        assert curve[312] == pytest.approx(lr) and curve[-1] < 1e-3 * lr and curve[156] == pytest.approx(lr / 2)
    assert curve[0] == 0
    (group,) = optimizer.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.98), 1e-9, decay)


@pytest.mark.parametrize("task", TASKS)
def test_one_step_of_every_arm(task: str, tmp_path: Path) -> None:
    """The files' own options; the encoder and the sequences are small."""
    make_task(tmp_path / "data", task)
    for arm in sorted((LRA / "arms").glob("*.yaml")):
        content = merged(LRA / f"{task}.yaml", arm)
        content["data"].update(root=str(tmp_path / "data"), source="files", max_length=48, batch_size=8)
        content["network"].update(dim=16, inner=8 if task == "pathfinder" else 16, mlp=32, layers=1, heads=2)
        content.setdefault("hash", {}).update(supports=12, topk=4, iterations=5)
        made = options_of(lra, write_yaml(tmp_path / f"{arm.stem}.yaml", content))
        lra.check(made, None)
        made.data.setup()
        torch.manual_seed(0)
        network = lra.build_encoder(made.network, made.hash, made.data).train()
        training = lra.SequenceTraining(network, made.recipe, 1, made.data.of_task.classes)
        optimizer = training.configure_optimizers()["optimizer"]
        optimizer.param_groups[0]["lr"] = 1e-3  # the schedule's first rate is 0
        before = network.blocks[0].attn.proj.weight.clone()
        tokens, labels = next(iter(made.data.train_dataloader()))
        torch.nn.functional.cross_entropy(network(tokens), labels).backward()
        optimizer.step()
        assert not torch.equal(before, network.blocks[0].attn.proj.weight), arm


def test_text_of_4000_bytes() -> None:
    made = options_of(lra, LRA / "text.yaml", LRA / "text_4k.yaml")
    assert made.data.max_length == 4000 and made.network.dim == 256


def test_fixed_positions() -> None:
    """The arena's table, written out."""
    n, d = np.arange(5)[:, None], np.arange(0, 6, 2)
    wanted = np.zeros((5, 6))
    wanted[:, 0::2], wanted[:, 1::2] = (f(n * np.exp(d * -(np.log(10000.0) / 6))) for f in (np.sin, np.cos))
    np.testing.assert_allclose(sinusoids(5, 6).numpy(), wanted, atol=1e-6)
