"""Every classification recipe: the published numbers, and one optimiser step on a made folder."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import yaml
from made import LITV2, SHRINK, options_of
from torch import Tensor

from litv2.models.classifier import LITv2
from litv2.models.pyramid import architecture
from litv2.training import images
from litv2.training.recipe import Recipe, make_optimizer, parameter_groups
from paperkit.data.images import ImageData
from paperkit.files.runs import RunFolder
from paperkit.testing.made_images import make_cifar, make_image_folder
from paperkit.training.classification import classification_loss

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
IMAGES = [path for path in CONFIGS if path.parent.name in ("imagenet", "ablation")]
PARAMETERS = {"litv2_s": 27_844_000, "litv2_m": 48_830_368, "litv2_b": 86_520_704, "litv2_b_384": 86_520_704}


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_one_step(path: Path, tmp_path: Path) -> None:
    """The file's own options; only the network, the batch and the images are small."""
    content = yaml.safe_load(path.read_text())
    classes = 100 if content["data"]["dataset"] == "cifar100" else 2
    if classes == 100:
        make_cifar(tmp_path / "data", "cifar100")
    else:
        make_image_folder(tmp_path / "data", per_class=4)
    fine = path.stem == "litv2_b_384"
    content["network"].setdefault("options", {}).update(SHRINK)
    if fine:
        start = LITv2(**{**architecture("litv2_b"), **SHRINK, "num_classes": 2})
        torch.save({"model": start.state_dict()}, tmp_path / "litv2_b.pth")
        content["network"]["weights"] = str(tmp_path / "litv2_b.pth")
    content["data"].update(root=str(tmp_path / "data"), batch_size=8, num_workers=0, num_classes=classes, input_size=64)
    content["trainer"].update(precision="32-true", accelerator="cpu", devices=1)
    content["trainer"].update(enable_progress_bar=False, log_every_n_steps=1)
    content["recipe"]["epochs"], content["recipe"]["warmup_epochs"] = 1, 0
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(content))
    run = RunFolder.create(tmp_path / "runs", "litv2", "one")
    training = images.train(run, options_of(images, small), resuming=False)
    assert training.trainer.global_step == 1
    assert (run.path / "model" / "model.safetensors").is_file() and (run.path / "metrics.json").is_file()


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_recipe_as_published(path: Path) -> None:
    made = options_of(images, path)
    fine = path.stem == "litv2_b_384"
    recipe = made.recipe.scaled(1024)
    expected = (4e-5, 4e-8, 4e-7, 1e-8, 30, 5) if fine else (1e-3, 1e-6, 1e-5, 0.05, 300, 20)
    found = (recipe.lr, recipe.warmup_lr, recipe.min_lr, recipe.weight_decay, recipe.epochs, recipe.warmup_epochs)
    assert found == pytest.approx(expected)
    assert recipe.betas == (0.9, 0.999) and recipe.eps == 1e-8
    assert (made.mixing.mixup, made.mixing.cutmix, made.mixing.switch_prob, made.mixing.smoothing) == (
        0.8,
        1.0,
        0.5,
        0.1,
    )
    assert made.trainer.gradient_clip_val == 5 and made.data.batch_size == 128
    assert made.data.input_size == (384 if fine else 224)
    resize = made.data.eval_transform.transforms[0].size  # straight to 384 x 384, or the shorter side to 256
    assert tuple(resize) == (384, 384) if fine else resize in (256, [256])
    with torch.device("meta"):
        model = images.build_classifier(
            type(made.network)(made.network.name, made.network.options), 1000, made.data.input_size
        )
    if not made.network.options and made.network.name in PARAMETERS:
        assert sum(p.numel() for p in model.parameters()) == PARAMETERS[made.network.name]
    groups = {group["name"]: group for group in parameter_groups(model, recipe)}
    assert len(groups["offset"]["params"]) == 3 and groups["offset"]["lr"] == pytest.approx(recipe.lr / 100)
    tables = sum(name.endswith("bias_table") for name, _ in model.named_parameters())
    assert groups["no_decay"]["weight_decay"] == 0
    assert sum(p.ndim > 1 for p in groups["no_decay"]["params"]) == tables
    optimizer, schedule = make_optimizer(model, recipe, 1251)
    for done, share in ((1, None), (recipe.warmup_epochs * 1251 + 1, recipe.warmup_epochs / recipe.epochs), (10**9, 1)):
        schedule.advance(done)
        for group in optimizer.param_groups:
            top = groups[group["name"]]["lr"]
            cosine = recipe.min_lr + (top - recipe.min_lr) * (1 + math.cos(math.pi * (share or 0))) / 2
            assert group["lr"] == pytest.approx(recipe.warmup_lr if share is None else cosine)


def test_two_processes_train_as_by_hand(tmp_path: Path) -> None:
    """Two gloo processes, two epochs of four global batches: the weights are those of the mean of both ranks'
    gradients, each with the BatchNorm statistics of its own half; the buffers are rank 0's. One rank alone ends
    elsewhere.
    """
    make_image_folder(tmp_path / "data", per_class=8)
    words = {
        "--data.root": str(tmp_path / "data"), "--data.batch_size": "2", "--data.num_classes": "2",
        "--data.input_size": "64", "--data.num_workers": "0", "--mixing.mixup": "0", "--mixing.cutmix": "0",
        "--recipe.epochs": "2", "--recipe.warmup_epochs": "0", "--recipe.lr": "0.1",
        "--network.options": str({**SHRINK, "drop_path_rate": 0.0}), "--trainer.accelerator": "cpu",
        "--trainer.devices": "2", "--trainer.strategy": "ddp", "--trainer.enable_progress_bar": "false",
        "--root": str(tmp_path / "runs"), "--name": "two", "--engine": "images",
    }  # fmt: skip
    LITV2.process("train", *(word for pair in words.items() for word in pair), cwd=tmp_path)
    trained = LITv2.from_pretrained(tmp_path / "runs" / "litv2" / "two" / "model").state_dict()
    assert trained["layers.0.downsample.norm_layer.num_batches_tracked"] == 8
    together, alone = (by_hand(tmp_path / "data", ranks) for ranks in ((0, 1), (0, 0)))
    assert largest_difference(trained, together) < 1e-5 and largest_difference(trained, alone) > 1e-3


def largest_difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Over all weights but the bias before each BatchNorm: its gradient is 0 and AdamW follows the rounding."""
    keys = [key for key in one if not key.endswith(("dconv.bias", "running_mean", "running_var"))]
    return max((one[key] - two[key]).abs().max().item() for key in keys)


def by_hand(root: Path, ranks: tuple[int, int]) -> dict[str, Tensor]:
    """The weights after the two-process run, in one process."""
    pl.seed_everything(0, verbose=False)  # as the run does before it builds its network
    options = {**architecture("litv2_s"), **SHRINK, "drop_path_rate": 0.0, "num_classes": 2, "img_size": 64}
    network = LITv2(**options)
    recipe = Recipe(lr=0.1, epochs=2, warmup_epochs=0).scaled(4)  # peak 8e-4
    optimizer, schedule = make_optimizer(network, recipe, 4)
    done = 0
    parts = [ImageData(str(root), num_classes=2, batch_size=2, num_workers=0, input_size=64) for _ in ranks]
    for rank, part in zip(ranks, parts, strict=True):
        part.trainer = SimpleNamespace(global_rank=rank, world_size=2, overfit_batches=0, current_epoch=0)  # type: ignore[assignment]
        part.setup()
    network.train()
    for epoch in range(2):
        loaders = [part.train_dataloader() for part in parts]
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        for batches in zip(*loaders, strict=True):
            optimizer.zero_grad()
            for rank, (pictures, labels) in enumerate(batches):
                buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
                (classification_loss(network(pictures), labels, 0.1) / 2).backward()
                if rank:
                    network.load_state_dict(buffers, strict=False)
            optimizer.step()
            done += 1
            schedule.advance(done)
    return network.state_dict()
