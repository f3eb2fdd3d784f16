"""Every recipe: the published numbers, the published tables, and one step of each on made data."""

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from made import CONFIGS, CPU, merged, options_of, write_yaml

from focusformer.method.architecture import AUTOFORMER, SPACES
from focusformer.method.cost import macs, official_flops, params, relative_macs
from focusformer.method.reinforce import Scores
from focusformer.method.strategies import Focus, training_losses
from focusformer.models.folders import SavedSupernet
from focusformer.training import finetune, images
from focusformer.training.options import build_strategy, build_supernet, space_of
from focusformer.training.recipe import parameter_groups
from paperkit.testing.made_images import make_image_folder
from paperkit.training.classification import classification_loss, make_mixup
from paperkit.training.optim import build

IMAGENET = CONFIGS / "imagenet"
TI = IMAGENET / "ti.yaml"
SMALL = {
    "SUPERNET": {"EMBED_DIM": 32, "DEPTH": 3, "NUM_HEADS": 4, "MLP_RATIO": 2.0, "head_dim": 8},
    "SEARCH_SPACE": {"EMBED_DIM": [16, 24, 32], "DEPTH": [1, 2, 3], "NUM_HEADS": [1, 2, 4], "MLP_RATIO": [1.0, 2.0]},
}
VARIANTS = sorted((CONFIGS / "variants").glob("*.yaml"))


def published(name: str) -> list[dict[str, Any]]:
    content = json.loads((resources.files("focusformer") / "published" / f"{name}.json").read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]


def test_every_file_opens_with_its_command() -> None:
    for path in CONFIGS.rglob("*.yaml"):
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert any(line.startswith("# Command:  make focusformer-train CONFIG=focusformer/configs/") for line in head)
        assert any(line.startswith("# Paper:") for line in head), path
        assert any(line.startswith("# Measured here: ") for line in head), path
        assert f"{path.relative_to(CONFIGS)}" in "\n".join(head), path
        assert yaml.safe_load(path.read_text())["engine"] == ("finetune" if "finetune" in path.parts else "images")


@pytest.mark.parametrize(("name", "anchors", "largest"), [("ti", 9, 2.34), ("s", 13, 7.342), ("b", 10, 15.972)])
def test_supernet_as_published(name: str, anchors: int, largest: float) -> None:
    made = options_of(images, IMAGENET / f"{name}.yaml")
    data, mixing, trainer = made.data, made.mixing, made.trainer
    assert (trainer.max_epochs, trainer.precision, trainer.gradient_clip_val) == (500, "16-mixed", None)
    assert (data.batch_size * 8, data.repeats, data.input_size, data.val_fraction) == (1024, 3, 224, 0.039)
    assert data.eval_transform.transforms[0].size in (256, [256])
    assert (mixing.mixup, mixing.cutmix, mixing.switch_prob, mixing.smoothing) == (0.8, 1.0, 0.5, 0.1)
    assert made.ema.decay is None and made.network.drop_path_rate == 0.1 and made.network.unsampled == "decay"
    strategy, learning, reward = made.strategy, made.reinforce, made.reward
    assert (strategy.name, strategy.warmup, strategy.interval, strategy.samples, strategy.exploration) == (
        "focusformer", 0.1, 10, 8, 0.05,
    )  # fmt: skip
    assert (learning.optimizer, learning.lr, learning.clip, learning.entropy, learning.baseline, learning.decay) == (
        "adam", 1e-3, 1.0, 0.01, "anchor", 0.95,
    )  # fmt: skip
    assert (reward.quality, reward.penalty, made.sampler.masking) == ("accuracy", "none", True)
    trainer.precision = None  # this machine may be a CPU
    images.check(made, None)
    space = space_of(made.network, data)
    assert space == SPACES[name] and official_flops(space.sizes, space.largest()) / 1e9 == pytest.approx(
        largest, abs=1e-3
    )
    built = build_strategy(made, space, 100)
    assert isinstance(built, Focus)
    found = built.sampler.constraint("flops").anchors
    assert len(found) == anchors and built.sampler.policy.__class__.__name__ == "LSTMPolicy"
    step = float(found[1] - found[0]) / 1e9  # the default: 0.1, 0.25 and 0.5 G
    assert step == pytest.approx({"ti": 0.1, "s": 0.25, "b": 0.5}[name], rel=0.1)
    with torch.device("meta"):
        model = SavedSupernet(space.to_plain())
    groups = parameter_groups(model, made.optim.weight_decay)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in groups)
    assert {group["weight_decay"] for group in groups} == {0.05, 0.0} and len(decayed | free) == len(names)
    assert {"pos_embed", "cls_token", "head.bias", "norm.weight"} <= free
    assert "blocks.0.attn.rel_pos_embed_k.embeddings_table_v" in decayed and not decayed & {"pos_embed", "cls_token"}
    optimizer, schedule = build(groups, made.optim, 1251, 500, global_batch=1024)
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["eps"] == 1e-8
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    for done in (0, 1, 2, 20, 21, 22, 250, 499):  # the epoch that follows; its rate has the index of the one before
        schedule.advance(done)
        t = max(done - 1, 0)
        fall = 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * t / 500)) / 2
        wanted = 1e-6 + t * (1e-3 - 1e-6) / 20 if t < 20 else fall
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([wanted] * 2)


@pytest.mark.parametrize(("name", "size", "tokens", "total"), [("native", 32, 65, 512), ("resized", 224, 197, 64 * 8)])
def test_cifar_recipes(name: str, size: int, tokens: int, total: int) -> None:
    made = options_of(images, CONFIGS / "cifar100" / f"{name}.yaml")
    space = space_of(made.network, made.data)
    assert (space.sizes.img_size, space.sizes.patches + 1, space.sizes.num_classes) == (size, tokens, 100)
    assert made.data.val_fraction == 0.1 and made.trainer.max_epochs == 300 and made.optim.warmup_epochs == 20
    assert made.optim.lr == 1e-3 and total == made.data.batch_size * (1 if name == "native" else 8)
    assert made.strategy.options(300).first_update == 30


def test_published_counts() -> None:
    """Parameters to the digit, FLOPs as printed; sizes of the spaces."""
    for row in published("spaces"):
        space = SPACES[row["space"]]
        assert params(space.sizes, space.sizes.largest) == row["stored_params"] and space.size() == row["architectures"]
        for which, architecture in (("smallest", space.smallest()), ("largest", space.largest())):
            assert params(space.sizes, architecture) == row[f"{which}_params"]
            assert official_flops(space.sizes, architecture) / 1e9 == pytest.approx(row[f"{which}_flops_G"], abs=5e-4)
    for row, (name, architecture) in zip(published("architectures"), AUTOFORMER.items(), strict=True):
        sizes = SPACES[name].sizes
        assert (list(architecture.heads), list(architecture.ratios)) == (row["heads"], row["ratios"])
        assert params(sizes, architecture) == row["params"]
        for count, key in ((official_flops, "flops_G"), (macs, "macs_G"), (relative_macs, "relative_G")):
            assert count(sizes, architecture) / 1e9 == pytest.approx(row[key], abs=5e-5)


def test_published_comparison() -> None:
    """The abstract's 0.5 points are 0.4 by the table: both stand beside each other."""
    rows = {(row["model"], row["source"]): row["top1"] for row in published("imagenet")}
    assert rows["FocusFormer-Ti", "ShiftNAS"] - rows["AutoFormer-Ti", "ShiftNAS"] == pytest.approx(0.4)
    assert len(rows) == 15


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and a small space."""
    folder = tmp_path_factory.mktemp("configs")
    make_image_folder(folder / "images", per_class=8)
    write_yaml(folder / "space.yaml", SMALL)
    return folder


STEPS = {
    **{path.stem: [path] for path in sorted(IMAGENET.glob("*.yaml"))},
    **{f"cifar_{path.stem}": [path] for path in sorted((CONFIGS / "cifar100").glob("*.yaml"))},
    **{path.stem: [TI, path] for path in VARIANTS},
}


@pytest.mark.parametrize("recipe", STEPS)
def test_one_step_of_a_recipe(recipe: str, world: Path, tmp_path: Path) -> None:
    """By hand: the plan of a step, its losses, the step of the weights, and the update of the sampler."""
    content = merged(*STEPS[recipe])
    options = {key: value for key, value in content["network"].get("options", {}).items() if key != "patch_size"}
    content["network"].update(space=str(world / "space.yaml"), options={"patch_size": 8, **options})
    content["sampler"] = {**content["sampler"], "least": 0.5}
    content["strategy"].update(warmup=0.0)
    content["data"].update(root=str(world / "images"), dataset="imagenet", batch_size=4, num_workers=0, num_classes=2,
                           input_size=32, val_fraction=0.25)  # fmt: skip
    content["trainer"].update(CPU, max_epochs=1)
    made = options_of(images, write_yaml(tmp_path / "small.yaml", content))
    images.check(made, None)
    made.data.setup()
    batch, labels = next(iter(made.data.train_dataloader()))
    space, mixing = space_of(made.network, made.data), made.mixing
    model, strategy = build_supernet(made.network, space).train(), build_strategy(made, space, 10)

    def scores(architectures: list[Any]) -> Scores:
        return Scores(torch.linspace(0, 1, len(architectures)), torch.linspace(2, 1, len(architectures)))

    mix = make_mixup(mixing.mixup, mixing.cutmix, mixing.switch_prob, mixing.smoothing, 2)
    assert mix is not None
    pictures, targets = mix(batch, labels)
    optimizer, _ = build(parameter_groups(model, made.optim.weight_decay), made.optim, 1, 1, global_batch=512)
    passes = strategy.plan(0, scores)
    losses = training_losses(model, passes, pictures, targets, classification_loss, torch.Tensor.backward)
    assert len(losses) == len(passes) == (4 if recipe == "sandwich" else 1) and all(map(torch.isfinite, losses))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    optimizer.step()
    assert not torch.equal(before["head.weight"], model.head.weight)
    update = strategy.learn(0, scores)
    assert (update is not None) == isinstance(strategy, Focus)
    if update is not None:
        assert len(update.rewards) == 8 and (not made.sampler.masking or all(update.feasible))


@pytest.mark.parametrize("name", ["imagenet", "cifar100"])
def test_fine_tuning_recipe(name: str, world: Path, tmp_path: Path) -> None:
    made = options_of(finetune, CONFIGS / "finetune" / f"{name}.yaml")
    assert (made.optim.lr, made.optim.warmup_epochs, made.trainer.max_epochs) == (5e-5, 5, 40)
    assert made.network.drop_path_rate == 0.1 and made.data.val_fraction == (0.1 if name == "cifar100" else 0.0)
    supernet = SavedSupernet({**SMALL, "SUPERNET": {**SMALL["SUPERNET"], "img_size": 32, "patch_size": 8}})
    supernet.save_pretrained(tmp_path / "supernet")
    content = merged(CONFIGS / "finetune" / f"{name}.yaml")
    content["network"].update(weights=str(tmp_path / "supernet"), architecture="24/2,4/1,2")
    content["data"].update(root=str(world / "images"), dataset="imagenet", batch_size=4, num_workers=0, num_classes=2,
                           input_size=32)  # fmt: skip
    content["trainer"].update(CPU, max_epochs=1)
    made = options_of(finetune, write_yaml(tmp_path / "small.yaml", content))
    finetune.check(made, None)
    model = made.network.build(2, 32).train()
    assert model.num_classes == 2 and model.blocks[1].drop_path.drop_prob == pytest.approx(0.1)
    decayed, free = parameter_groups(model, 0.05)
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))
    made.data.setup()
    batch, labels = next(iter(made.data.train_dataloader()))
    optimizer, _ = build([decayed, free], made.optim, 1, 1, global_batch=512)
    classification_loss(model(batch), labels, 0.1).backward()
    optimizer.step()
    assert all(p.grad is not None for p in model.parameters())
