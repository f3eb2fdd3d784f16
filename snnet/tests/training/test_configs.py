"""Every recipe through the command's own parser: the published numbers, and one step on a made folder with tiny
anchors of the same timm models; every ablation: what it changes in a recipe, and nothing else."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from made import images_parser
from pytorch_lightning import Callback
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from timm.layers import DropPath
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import nn

from paperkit.files.runs import RunFolder
from paperkit.testing.made_images import WNIDS, make_image_folder
from paperkit.training.optim import build
from paperkit.training.trainer import trainer_options
from snnet.method.least_squares import initialise
from snnet.models.released_networks import RELEASED
from snnet.training.images import build_network, build_teacher, build_trainer
from snnet.training.joint import JointTraining, parameter_groups

CONFIGS = Path(__file__).parents[2] / "configs"
IMAGENET_STEPS = 1_281_167 // 1024


def vit(width: int) -> dict[str, Any]:
    return {"img_size": 32, "patch_size": 8, "embed_dim": width, "depth": 2, "num_heads": 2}


def swin(width: int, third: int) -> dict[str, Any]:
    heads, depths = (1, 1, 2, 2), (2, 2, third, 2)
    return {"img_size": 64, "embed_dim": width, "depths": depths, "num_heads": heads, "window_size": 2}


def levit(widths: tuple[int, int, int]) -> dict[str, Any]:
    return {"img_size": 64, "embed_dim": widths, "key_dim": 8, "num_heads": (1, 2, 2), "depth": (2, 2, 2)}


RESNETS = [{"channels": (8, 8, 16, 16)}, {"channels": (8, 8, 16, 16), "layers": (2, 3, 3, 2)}]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A column of the published table, and anchors that stand in for its own."""

    released: str
    tiny: list[dict[str, Any]]
    epochs: int
    optimiser: type
    weight_decay: float
    peak: float  # learning rate after scaling to 8 x 128 images
    warmup: float
    low: float
    lag: int = 1
    per_step: bool = False
    anchors_scale: float = 1.0
    clip: float | None = None
    agc: float | None = None
    drop_path: float = 0.0
    mixed: bool = True
    repeats: int = 1
    erasing: float = 0.25
    split: int = 0
    interpolation: str = "bicubic"
    seed: int = 0
    decayed: Sequence[str] = ()
    spared: Sequence[str] = ()

    def rate(self, epoch: int) -> float:
        """The learning rate that the first update of an epoch has, from the formulas of timm's cosine schedule."""
        steps = IMAGENET_STEPS if self.per_step else 1
        position = max(epoch * steps - self.lag, 0)
        warm, length = 5 * steps, self.epochs * steps
        if position < warm:
            return self.warmup + position * (self.peak - self.warmup) / warm
        if self.per_step:  # the cosine begins after the warm-up
            position, length = position - warm, length - warm
        return self.low + (self.peak - self.low) * (1 + math.cos(math.pi * position / length)) / 2


RESNET = {
    "epochs": 30,
    "optimiser": torch.optim.SGD,
    "weight_decay": 2e-5,
    "peak": 0.05,
    "warmup": 1e-5,
    "low": 0.0,
    "lag": 0,
    "anchors_scale": 0.1,
    "mixed": False,
    "erasing": 0.6,
    "split": 2,
    "interpolation": "random",
    "seed": 42,
}
RECIPES = {
    "deit": Recipe(
        "deit_ti_s_b",
        [vit(8), vit(16), vit(24)],
        epochs=50,
        optimiser=torch.optim.AdamW,
        weight_decay=0.05,
        peak=1e-4,
        warmup=1e-7,
        low=1e-6,
        drop_path=0.1,
        repeats=3,
        decayed=(
            "anchors.0.cls_token",
            "anchors.1.pos_embed",
            "anchors.2.head.weight",
            "stitch_layers.0.0.transform.weight",
        ),
        spared=("anchors.0.norm.weight", "anchors.1.blocks.0.attn.qkv.bias", "stitch_layers.1.0.transform.bias"),
    ),
    "swin": Recipe(
        "swin_ti_s_b",
        [swin(8, 2), swin(8, 4), swin(16, 4)],
        epochs=50,
        optimiser=torch.optim.AdamW,
        weight_decay=0.05,
        peak=1e-3,
        warmup=1e-6,
        low=1e-5,
        per_step=True,
        anchors_scale=0.1,
        clip=5.0,
        drop_path=0.2,
        decayed=(
            "anchors.0.layers.0.blocks.0.attn.relative_position_bias_table",
            "anchors.1.layers.1.downsample.reduction.weight",
            "stitch_layers.0.0.0.transform.weight",
            "stitch_layers.2.1.0.transform.bias",
        ),
        spared=("anchors.0.norm.weight", "anchors.2.layers.0.blocks.0.mlp.fc1.bias"),
    ),
    "levit": Recipe(
        "levit_192_256",
        [levit((16, 16, 16)), levit((16, 24, 24))],
        epochs=100,
        optimiser=torch.optim.AdamW,
        weight_decay=0.025,
        peak=1e-4,
        warmup=1e-7,
        low=1e-6,
        agc=0.01,
        repeats=3,
        decayed=("anchors.0.stages.0.blocks.0.attn.attention_biases", "stitch_layers.1.0.0.transform.weight"),
        spared=("anchors.0.stem.conv1.bn.weight", "anchors.1.head.linear.bias", "stitch_layers.1.0.0.transform.bias"),
    ),
    "resnet18_50": Recipe(
        "resnet18_resnet50",
        RESNETS,
        decayed=("anchors.0.conv1.weight", "stitch_layers.1.0.0.transform.weight"),
        spared=("anchors.0.bn1.weight", "anchors.1.fc.bias", "stitch_layers.0.0.0.transform.bias"),
        **RESNET,
    ),
    "resnet18_swin_ti": Recipe(
        "resnet18_swin_ti",
        [RESNETS[0], swin(24, 4)],
        decayed=("anchors.1.patch_embed.proj.weight", "stitch_layers.1.0.0.transform.weight"),
        spared=("anchors.0.layer1.0.bn2.bias", "anchors.1.norm.weight", "stitch_layers.0.0.0.transform.bias"),
        **RESNET,
    ),
}
recipes = pytest.mark.parametrize("name", RECIPES)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_folder(tmp_path_factory.mktemp("images"), WNIDS[:3], per_class=4, size=64)


def parse(name: str, *more: str) -> Any:
    """The options of a recipe, as `snnet train --config` has them."""
    parser = images_parser()
    return parser, parser.parse_args(["--config", str(CONFIGS / "imagenet" / f"{name}.yaml"), *more])


class Watch(Callback):
    """The weights before, the loss, and the norms of the gradients as the optimiser saw them."""

    def __init__(self) -> None:
        self.gradients: dict[str, float] = {}
        self.losses: list[float] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.before = {key: value.clone() for key, value in module.network.state_dict().items()}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *rest: Any) -> None:
        self.losses.append(outputs["loss"].item())
        used = [(key, p.grad) for key, p in module.network.named_parameters() if p.grad is not None]
        self.gradients = {key: gradient.norm().item() for key, gradient in used}


def test_every_recipe_is_here() -> None:
    assert {path.stem for path in (CONFIGS / "imagenet").glob("*.yaml")} == RECIPES.keys()
    for path in CONFIGS.rglob("*.yaml"):
        head = path.read_text().splitlines()[:4]
        assert head[1].startswith(("# Command:", "# Laid over")) and head[3].startswith("# Measured here:"), path


@recipes
def test_options(name: str) -> None:
    """What the table says and no step shows: anchors, length, precision, teacher, seed."""
    recipe, (_, arguments) = RECIPES[name], parse(name)
    network, training, trainer = arguments.network, arguments.training, arguments.trainer
    released = RELEASED[recipe.released]
    assert tuple(network.anchors) == released.anchors and network.weights == "timm"
    assert network.stitched_final_norm == released.stitched_final_norm
    assert (network.initialisation, network.init_images, network.layer_assignment) == ("pinv", 100, "released")
    assert (network.nearest, network.window, network.stride, network.any_order) == (True, 2, 1, False)
    assert (trainer.max_epochs, trainer.precision) == (recipe.epochs, "16-mixed")
    assert arguments.training_seed == recipe.seed
    assert (training.distillation, training.alpha, training.smoothing) == ("hard", 0.5, 0.1)
    assert (arguments.teacher.name, arguments.teacher.weights) == ("regnety_160.deit_in1k", "timm")
    assert training.full_tuning and training.stitches_per_step == 1
    assert (arguments.data.batch_size, arguments.data.dataset, arguments.data.input_size) == (128, "imagenet", 224)
    assert (trainer.gradient_clip_val, arguments.optim.agc) == (recipe.clip, recipe.agc)


@recipes
def test_schedule_of_eight_processes(name: str) -> None:
    """Learning rates of epochs 0 to 6 and of the last, per group, at 8 x 128 images a step."""
    recipe, (parser, arguments) = RECIPES[name], parse(name)
    options = parser.instantiate_classes(arguments)
    anchor, stitch = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))
    groups = [
        {"params": [anchor], "lr_scale": options.training.anchor_lr_scale},
        {"params": [stitch], "lr_scale": options.training.stitch_lr_scale},
    ]
    optimizer, schedule = build(groups, options.optim, IMAGENET_STEPS, recipe.epochs, global_batch=1024)
    assert schedule.interval == ("step" if recipe.per_step else "epoch")
    for epoch in (*range(7), recipe.epochs - 1):
        schedule.advance(epoch * (IMAGENET_STEPS if recipe.per_step else 1))
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([recipe.rate(epoch) * recipe.anchors_scale, recipe.rate(epoch)], rel=1e-6), epoch
    if recipe.lag and not recipe.per_step:
        assert recipe.rate(0) == recipe.rate(1) == recipe.warmup
    assert max(recipe.rate(epoch) for epoch in range(recipe.epochs)) <= recipe.peak
    assert type(optimizer) is recipe.optimiser
    if recipe.optimiser is torch.optim.SGD:
        assert optimizer.defaults["momentum"] == 0.9 and optimizer.defaults["nesterov"]
    else:
        assert optimizer.defaults["betas"] == (0.9, 0.999)


@recipes
def test_augmentation(name: str, images: Path) -> None:
    recipe, (parser, arguments) = RECIPES[name], parse(name, "--data.root", str(images))
    data = parser.instantiate_classes(arguments).data
    found = data.train_transform.transforms
    (policy,) = [t for t in found if isinstance(t, RandAugment)]
    assert {(op.magnitude, op.magnitude_std) for op in policy.ops} == {(9, 0.5)}
    assert any(op.name == "PosterizeIncreasing" for op in policy.ops)
    (erase,) = [t for t in found if isinstance(t, RandomErasing)] or [data.erase_batch]
    assert (erase.probability, erase.num_splits, erase.per_pixel) == (recipe.erasing, recipe.split, True)
    assert arguments.data.color_jitter == 0.4 and arguments.data.interpolation == recipe.interpolation
    assert data.repeats == recipe.repeats and data.seed == 0
    assert data.eval_transform.transforms[0].size in (256, (256, 256))
    assert data.eval_transform.transforms[1].size in (224, (224, 224))


@recipes
def test_one_step(name: str, images: Path, tmp_path: Path) -> None:
    """Tiny anchors of the same timm models through the real trainer: what one optimiser step has and does."""
    recipe = RECIPES[name]
    side = recipe.tiny[-1].get("img_size", 64)
    words = ["--data.root", str(images), "--data.batch_size", "4", "--data.num_workers", "0"]
    words += ["--data.num_classes", "1000", "--data.input_size", str(side)]
    parser, arguments = parse(name, *words)
    options = parser.instantiate_classes(arguments)
    named = zip(options.network.anchors, recipe.tiny, strict=True)
    network_config = dataclasses.replace(
        options.network, anchors=[{"name": anchor, **tiny} for anchor, tiny in named], weights=None, init_images=8
    )
    network = build_network(network_config, options.data.num_classes)
    paths = [module.drop_prob for module in network.modules() if isinstance(module, DropPath)]
    assert max(paths, default=0.0) == pytest.approx(recipe.drop_path)
    split = {m.aux_bn[0].num_features for m in network.modules() if isinstance(m, SplitBatchNorm2d)}
    assert bool(split) == (recipe.split > 1)
    initialise(network, [options.data.training_sample(8)])
    teacher = build_teacher(dataclasses.replace(options.teacher, name="test_resnet", weights=None), 1000)
    training = JointTraining(network, options.training, options.optim, 1000, arguments.training_seed, teacher=teacher)
    if recipe.mixed:
        mix = training.mix
        assert mix is not None
        assert (mix.mixup_alpha, mix.cutmix_alpha, mix.switch_prob) == (0.8, 1.0, 0.5)
        assert (mix.label_smoothing, mix.mix_prob) == (0.1, 1.0)
    else:
        assert training.mix is None
    limits = {"accelerator": "cpu", "devices": 1, "precision": "32-true", "max_steps": 1, "limit_val_batches": 0}
    run = RunFolder.create(tmp_path, "snnet", "run")
    trainer = build_trainer(
        run,
        {**trainer_options(arguments.trainer), **limits, "enable_progress_bar": False},
        arguments.training_seed,
        save_every=1,
        ema=options.ema,
    )
    watch = Watch()
    trainer.callbacks.append(watch)
    trainer.fit(training, datamodule=options.data)

    assert trainer.global_step == 1 and math.isfinite(watch.losses[0])
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is recipe.optimiser
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    groups = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert groups.keys() == set(names.values())
    for key, group in groups.items():
        assert group["lr_scale"] == (1.0 if key.startswith("stitch_layers.") else recipe.anchors_scale), key
        assert group["weight_decay"] in (0.0, recipe.weight_decay), key
    assert {groups[key]["weight_decay"] for key in recipe.decayed} == {recipe.weight_decay}
    assert {groups[key]["weight_decay"] for key in recipe.spared} == {0.0}
    flat = {key for key in groups if key.startswith("anchors.") and dict(network.named_parameters())[key].ndim == 1}
    assert {groups[key]["weight_decay"] for key in flat} == {0.0}
    # The first learning rates scale with the batch where the recipe says so: here 4 images instead of 1024.
    shrink = 4 / 1024 if recipe.per_step else 1.0
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(recipe.warmup * shrink * group["lr_scale"], rel=1e-6)
    # What ran is the one configuration that the seed's stream drew, and the step moved what had a gradient.
    chosen = training.stream[0]
    steps = network.routes[chosen]
    used = tuple(prefix for step in steps for prefix in network.key_prefixes(step))
    assert watch.gradients and all(key.startswith(used) for key in watch.gradients)
    moved = {key for key, value in network.named_parameters() if not torch.equal(value, watch.before[key])}
    assert moved and moved <= watch.gradients.keys()
    if recipe.clip:
        assert math.hypot(*watch.gradients.values()) <= recipe.clip * (1 + 1e-4)
    assert (run.path / "checkpoints" / "last.ckpt").is_file()


def flattened(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in flattened(value, f"{prefix}.{key}").items()}
    return {prefix.lstrip("."): tree}


ABLATIONS: dict[str, dict[str, Any]] = {
    "all_pairs": {"network.nearest": False},
    "default_initialisation": {"network.initialisation": "default"},
    "epochs_100": {"trainer.max_epochs": 100},
    "slow_to_fast": {"network.anchors": list(RELEASED["deit_ti_s_b"].anchors)[::-1], "network.any_order": True},
    "stitches_only": {"training.full_tuning": False},
    "window_3": {"network.window": 3, "network.stride": 2},
    "window_4": {"network.window": 4, "network.stride": 3},
}


def test_every_ablation_is_here() -> None:
    assert {path.stem for path in (CONFIGS / "ablations").glob("*.yaml")} == ABLATIONS.keys()


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_changes_what_it_says_and_nothing_else(name: str) -> None:
    contents = []
    for more in ([], ["--config", str(CONFIGS / "ablations" / f"{name}.yaml")]):
        _, arguments = parse("deit", *more)
        content = flattened({k: v for k, v in arguments.as_dict().items() if k != "config"})
        contents.append(content)
    changed = {key: value for key, value in contents[1].items() if contents[0][key] != value}
    assert contents[0].keys() == contents[1].keys() and changed == ABLATIONS[name]


@pytest.mark.parametrize(
    ("name", "configurations"),
    [("all_pairs", 3 + 3 * 10 + 63), ("window_3", 3 + 2 * 12), ("window_4", 3 + 2 * 16), ("slow_to_fast", 3 + 2 * 10)],
)
def test_ablation_builds(name: str, configurations: int) -> None:
    """On anchors of depth 4: windows of 3 at stride 2 hold 9 + 3 pairs, of 4 all 16, of 2 the recipe's 10;
    of those, 63 choices of two make a chain of three."""
    parser, arguments = parse("deit", "--config", str(CONFIGS / "ablations" / f"{name}.yaml"))
    config = parser.instantiate_classes(arguments).network
    widths = {"tiny": 8, "small": 16, "base": 24}
    anchors = [{"name": a, **vit(widths[a.split("_")[1]]), "depth": 4} for a in config.anchors]
    network = build_network(dataclasses.replace(config, anchors=anchors, weights=None), 10)
    assert network.num_configurations == configurations
    if name == "slow_to_fast":
        assert network.stitch_layers[0][0].transform.weight.shape == (16, 24)


def test_stitches_only_trains_stitches_and_class_tokens() -> None:
    parser, arguments = parse("deit", "--config", str(CONFIGS / "ablations" / "stitches_only.yaml"))
    options = parser.instantiate_classes(arguments)
    anchors = [{"name": a, **tiny} for a, tiny in zip(options.network.anchors, RECIPES["deit"].tiny, strict=True)]
    network = build_network(dataclasses.replace(options.network, anchors=anchors, weights=None), 10)
    training = JointTraining(network, dataclasses.replace(options.training, distillation="none"), options.optim, 10)
    trained = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
    expected = {key for key in dict(network.named_parameters()) if key.startswith("stitch_layers.")}
    assert trained == expected | {f"anchors.{i}.cls_token" for i in range(3)}
    groups = parameter_groups(network, training.config, 0.05)
    assert sum(len(group["params"]) for group in groups) == len(trained)
