"""Every recipe: the published numbers, every row of the paper's tables, and one step of each on made data."""

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from made import CONFIGS, CPU, bivit, merged, options_of, pictures, small, small_network, write_yaml

from bivit.method.distillation import direction_matching, distribution_loss
from bivit.method.ledger import ledger
from bivit.models.binarize import METHODS, binary_layers
from bivit.models.classifier import save_pretrained
from bivit.models.detector import build_detector, is_without_decay
from bivit.training import detection, images
from bivit.training.distillation import Distillation
from bivit.training.images import build_student, build_teacher, parameter_groups, plan_of
from paperkit.errors import UserError
from paperkit.testing.made_images import make_image_folder
from paperkit.training.classification import classification_loss
from paperkit.training.detection import rate_factor
from paperkit.training.optim import build

IMAGENET, TINY = CONFIGS / "imagenet" / "base.yaml", CONFIGS / "tinyimagenet" / "base.yaml"
TEACHER, COCO = CONFIGS / "tinyimagenet" / "teacher.yaml", CONFIGS / "coco"
SWIN_T, NEST_T = "models/swin_tiny", "models/nest_tiny"
MODELS = {
    "deit_tiny_patch16_224": "models/deit_tiny", "deit_base_patch16_224": "models/deit_base",
    "swin_tiny_patch4_window7_224": SWIN_T, "swin_small_patch4_window7_224": "models/swin_small",
    "nest_tiny": NEST_T, "nest_small": "models/nest_small", "pvt_v2_b1": "models/pvt_v2_b1",
}  # fmt: skip
BASE = dict(attention="sab", attention_linear="pws", attention_bits="w1a1", mlp="w1a32", mlp_linear="pws",
            activation="gelu", beta=0.25, backward="softmax", normalize="none", v_scale=False, zero="ternary",
            thresholds=False, depth=1.0)  # fmt: skip
BIBERT = dict(attention="bool", attention_linear="mean", mlp_linear="mean")
BIT = dict(attention="elastic", attention_linear="bit", mlp_linear="bit", activation="relu")
ALONE = dict(mlp="float")
MEAN = dict(attention_linear="mean", mlp_linear="mean")


def table(name: str) -> list[dict[str, Any]]:
    content = json.loads((resources.files("bivit") / "published" / f"{name}.json").read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]


def rows() -> dict[str, tuple[Path, list[str], dict[str, Any], str]]:
    """Row of the paper -> config, overlays, what is binary other than by the base, order of the stages."""
    found: dict[str, tuple[Path, list[str], dict[str, Any], str]] = {}
    methods = {"BiViT": ([], {}, "clb"), "BiBERT": (["methods/bibert"], BIBERT, "one_step"),
               "BiT": (["methods/bit"], BIT, "one_step")}  # fmt: skip
    for row in table("imagenet"):
        if row["model"] in MODELS and row["method"] in methods:
            over, binary, order = methods[row["method"]]
            found[f"table 3, {row['model']}, {row['method']}"] = IMAGENET, [MODELS[row["model"]], *over], binary, order
    for row in table("tinyimagenet"):
        if row["method"] in methods:
            over, binary, order = methods[row["method"]]
            w1a1 = row["bits"] == "w1a1"
            overlays = [MODELS[row["model"]], *over, *(["variants/w1a1"] * w1a1)]
            changed = {**binary, "mlp": row["bits"]}
            found[f"table 2, {row['model']}, {row['bits']}, {row['method']}"] = TINY, overlays, changed, order
    alone = ["variants/attention_only"]
    for row in table("attention_ablation"):
        over = {"BiBERT": ["methods/bibert"], "SAB": ["variants/mean_scale"],
                "SAB past softmax": ["variants/mean_scale", "variants/past_softmax"]}[row["attention"]]  # fmt: skip
        changed = {"BiBERT": BIBERT, "SAB": MEAN, "SAB past softmax": {**MEAN, "backward": "direct"}}[row["attention"]]
        overlays = [MODELS[row["model"]], *over, *alone]
        found[f"table 5, {row['model']}, {row['attention']}"] = TINY, overlays, {**changed, **ALONE}, "one_step"
    for row in table("beta"):
        over = [] if row["beta"] == 0.25 else [f"variants/beta_{row['beta']:.2f}"]
        changed = {**MEAN, **ALONE, "beta": row["beta"]}
        found[f"table 6, {row['beta']}"] = TINY, ["variants/mean_scale", *alone, *over], changed, "one_step"
    orders = {"one step": "one_step", "two steps, activations first": "two_steps", "cross-layer": "clb"}
    for row in table("schedules"):
        order = orders[row["schedule"]]
        found[f"table 7, {row['schedule']}"] = TINY, [] if order == "clb" else [f"variants/{order}"], {}, order
    for row in table("scales"):
        pws = row["scales"] == "PWS"
        if row["binary part"] == "attention":
            over, changed = ["methods/bibert", *alone, *(["variants/pws"] * pws)], {**BIBERT, **ALONE}
            changed |= dict(attention_linear="pws", mlp_linear="pws") if pws else {}
        else:
            over, changed = (
                ["variants/mlp_only", *(["variants/mean_scale"] * (not pws))],
                dict(attention="float", mlp="w1a1"),
            )
            changed |= {} if pws else MEAN
        found[f"table 8, {row['binary part']}, {row['scales']}"] = TINY, over, changed, "one_step"
    return found


ROWS = rows()


def overlays(names: list[str]) -> list[Path]:
    return [CONFIGS / f"{name}.yaml" for name in names]


def test_every_file_opens_with_its_command() -> None:
    for path in CONFIGS.rglob("*.yaml"):
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert any(line.startswith("# Command:  make bivit-train CONFIG=bivit/configs/") for line in head), path
        assert any(line.startswith("# Paper:") for line in head), path
        assert any(line.startswith("# Measured here: ") for line in head), path
        assert f"{path.relative_to(CONFIGS)}" in "\n".join(head), path
        assert yaml.safe_load(path.read_text())["engine"] == ("detection" if COCO in path.parents else "images")


def test_every_row_of_the_paper_has_a_config() -> None:
    """Those without are float, of CNNs, of CvT-13 (no network of timm's) or of Cascade (no head of torchvision's)."""
    rows_of = {f"table {n}": sum(name.startswith(f"table {n},") for name in ROWS) for n in range(2, 9)}
    assert rows_of == {
        "table 2": 12,
        "table 3": 14,
        "table 4": 0,
        "table 5": 5,
        "table 6": 4,
        "table 7": 3,
        "table 8": 4,
    }


@pytest.mark.parametrize("row", ROWS)
def test_row_of_the_paper(row: str) -> None:
    """What is binary and in which order; and the recipe that is the same for all."""
    config, names, changed, order = ROWS[row]
    content = merged(config, *overlays(names))
    made = options_of(images, config, *overlays(names))
    assert vars(made.binary) == {**BASE, **changed} and made.schedule.order == order
    assert made.distillation.loss == "distribution" and made.distillation.teacher is None
    assert content["trainer"]["max_epochs"] == 300 and timm.is_model(made.network.name)
    check_recipe(made)


def check_recipe(made: Any) -> None:
    optim, data, network, mixing = made.optim, made.data, made.network, made.distillation
    assert (optim.name, optim.lr, optim.weight_decay, optim.betas, optim.eps) == ("adam", 5e-4, 0.0, (0.9, 0.999), 1e-8)
    assert (optim.schedule, optim.warmup_epochs, optim.warmup_lr, optim.min_lr) == ("cosine", 5, 1e-6, 1e-5)
    assert not optim.lr_per_512 and optim.agc is None and made.trainer.gradient_clip_val is None
    assert network.drop_path_rate == 0 and made.ema.decay is None
    assert (data.batch_size * 8, data.repeats, data.input_size) == (512, 3, 224)
    assert data.eval_transform.transforms[0].size in (256, [256])
    assert (mixing.mixup, mixing.cutmix, mixing.switch_prob) == (0.8, 1.0, 0.5)
    classes = {"imagenet": 1000, "tinyimagenet": 200}
    assert data.num_classes == classes[data.dataset]


@pytest.mark.parametrize("name", ["bibert", "bit", "naive", "xnor", "bireal", "reactnet"])
def test_methods_are_those_of_the_package(name: str) -> None:
    assert options_of(images, IMAGENET, CONFIGS / "methods" / f"{name}.yaml").binary == METHODS[name]
    assert options_of(images, IMAGENET).binary == METHODS["bivit"]


@pytest.mark.parametrize("config", [IMAGENET, TINY], ids=["imagenet", "tinyimagenet"])
def test_each_stage_has_its_own_schedule(config: Path) -> None:
    """150 + 150 epochs; each warms up from 1e-6 to 5e-4 and ends at 1e-5; one group decays nothing."""
    made = options_of(images, config)
    plan = plan_of(made)
    assert [(stage.epochs, stage.binary.mlp) for stage in plan] == [(150, "float"), (150, "w1a32")]
    model = small_network()
    groups = parameter_groups(model, made.optim.weight_decay)
    optimizer, schedule = build(groups, made.optim, 100, plan[0].epochs, global_batch=512)
    assert type(optimizer) is torch.optim.Adam and {g["weight_decay"] for g in optimizer.param_groups} == {0.0}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    for step in (0, 1, 250, 499, 500, 7500, 14999):
        schedule.advance(step)
        t = step / 15000
        rise = 1e-6 + step * (5e-4 - 1e-6) / 500
        fall = 1e-5 + (5e-4 - 1e-5) * (1 + math.cos(math.pi * t)) / 2
        wanted = rise if step < 500 else fall
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([wanted, wanted], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "method", "size", "gops"),
    [(row["model"], row["method"], row["size_MB"], row["GOPs"]) for row in table("imagenet")
     if row["model"] in MODELS and row["method"] in ("float", "BiViT") and not row["model"].startswith("pvt")],
)  # fmt: skip
def test_published_operations_and_sizes(name: str, method: str, size: float, gops: float) -> None:
    """To the printed digits; of DeiT-T 22.8 is cut off, and NesT-T's 68.4 is unexplained (68.23 by count)."""
    book = ledger(lambda: timm.create_model(name))
    ops, counted = (book.ops("fp"), book.size_bytes["fp"]) if method == "float" else (
        book.ops("w1a32"), book.size_bytes["paper"])  # fmt: skip
    assert ops / 1e9 == pytest.approx(gops, abs=0.051 if gops >= 10 else 0.0051)
    tolerance = (
        0.18 if (name, method) == ("nest_tiny", "float") else 0.08 if size > 20 else 0.05 if size > 10 else 0.0051
    )
    assert counted / 1e6 == pytest.approx(size, abs=tolerance)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and small float weights of every family."""
    folder = tmp_path_factory.mktemp("configs")
    make_image_folder(folder / "images", per_class=4)
    for name in ("deit_small_patch16_224", "swin_tiny_patch4_window7_224", "nest_tiny_jx", "pvt_v2_b1"):
        model = small_network(name, None, classes=2)
        save_pretrained(model, folder / name, name, None, small(name))
    return folder


OVERLAYS = sorted([*CONFIGS.glob("methods/*.yaml"), *CONFIGS.glob("variants/*.yaml")])
STEPS = {
    "imagenet": [IMAGENET],
    "tinyimagenet": [TINY],
    "teacher": [TEACHER],
    "swin": [IMAGENET, CONFIGS / f"{SWIN_T}.yaml"],
    "pvt": [IMAGENET, CONFIGS / "models" / "pvt_v2_b1.yaml"],
    **{path.stem: [IMAGENET, path] for path in OVERLAYS},
}


@pytest.mark.parametrize("recipe", STEPS)
def test_one_step_of_each_stage(recipe: str, world: Path, tmp_path: Path) -> None:
    """By hand, without a Trainer: the network of each stage, its groups, loss and step. Everything learns."""
    content = merged(*STEPS[recipe])
    name = content["network"]["name"]
    content["network"].update(options=small(name), weights=str(world / name))
    size = 64 if name.startswith("pvt") else 32
    content["data"].update(root=str(world / "images"), dataset="imagenet", batch_size=4, num_workers=0, num_classes=2,
                           input_size=size)  # fmt: skip
    content["trainer"].update(CPU, max_epochs=4)
    made = options_of(images, write_yaml(tmp_path / "small.yaml", content))
    images.check(made, None)
    made.data.setup()
    batch, labels = next(iter(made.data.train_dataloader()))
    state = images.read_start(name, str(world / name))
    labelled = made.distillation.loss == "labels"
    assert labelled == (recipe == "teacher")
    distillation = Distillation(
        build_teacher(made.network, "T", 2, size, state), made.distillation.loss == "directions"
    )
    for stage in plan_of(made):
        model = build_student(made.network, stage.binary, 2, size, state).train()
        optimizer, _ = build(parameter_groups(model, made.optim.weight_decay), made.optim, 1, 1, global_batch=512)
        loss = classification_loss(model(batch), labels) if labelled else distillation(model, batch)
        loss.backward()
        still = {n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()}
        assert not still, still
        assert len(binary_layers(model)) == 0 or not labelled
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer.step()
        assert sum(not torch.equal(before[n], p) for n, p in model.named_parameters()) > len(before) / 2
        state = {key: value.detach().clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "nest_tiny_jx"])
def test_losses_are_those_of_the_method(name: str) -> None:
    """BiBERT's directions: q, k and v of every layer and every hidden state, of unit norm each, differ by 2 at most."""
    teacher, student = small_network(name, None), small_network(name, seed=1)
    x = pictures()
    plain, directed = (Distillation(teacher, on)(student, x).item() for on in (False, True))
    assert plain == pytest.approx(distribution_loss(student(x), teacher(x)).item())
    layers = sum(name.endswith("attn.qkv") for name in binary_layers(student))
    assert 0 < directed - plain < 2 * 4 * layers and direction_matching([x], [x]) == 0


def test_directions_need_one_linear_for_q_k_and_v() -> None:
    with pytest.raises(UserError, match="has no attention with one linear qkv"):
        Distillation(small_network("pvt_v2_b1", None), True)(small_network("pvt_v2_b1"), pictures(size=64))


def test_detection_recipe() -> None:
    made = options_of(detection, COCO / "mask_rcnn_swin_tiny.yaml")
    config = made.detection
    assert (config.lr, config.weight_decay, config.epochs, config.milestones) == (1e-4, 0.05, 12, (8, 11))
    assert config.min_sizes == tuple(range(480, 801, 32)) and config.max_size == 1333
    assert (config.drop_path_rate, made.data.batch_size * 8, made.data.flip, made.data.crop) == (0.2, 16, 0.5, 0.5)
    assert vars(made.binary) == {**BASE, "mlp": "float"} and made.trainer.precision == "16-mixed"
    bibert = options_of(detection, COCO / "mask_rcnn_swin_tiny.yaml", COCO / "bibert.yaml").binary
    assert (bibert.attention, bibert.attention_linear, bibert.mlp) == ("bool", "mean", "float")
    assert options_of(detection, COCO / "mask_rcnn_swin_tiny.yaml", COCO / "float.yaml").binary.attention == "float"
    curve = 1000, config.milestones, config.warmup_iters, config.warmup_factor
    factors = [rate_factor(step, *curve) for step in (0, 250, 500, 7999, 8000, 11000)]
    assert factors == pytest.approx([1e-3, 0.5005, 1, 1, 0.1, 0.01])
    with torch.device("meta"):
        model = build_detector(config.name, made.binary)
    decayed, free = detection.parameter_groups(model, config.weight_decay)
    assert decayed["weight_decay"] == 0.05 and free["weight_decay"] == 0
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))
    names = [name for name, _ in model.named_parameters() if is_without_decay(name)]
    assert len(names) == len(free["params"]) and sum("scaling_factor" in name for name in names) == 24
    layers = binary_layers(model)
    assert len(layers) == 24 and all(".attn." in name for name in layers)
    blocks = [block for layer in model.backbone.body.body.layers for block in layer.blocks]
    assert [any(block.shift_size) for block in blocks] == [False, True] * 6 and blocks[-1].window_size == (7, 7)


def test_the_command_of_a_config_is_understood() -> None:
    """The options of a head's command line exist."""
    out = bivit.here("train", "--engine", "images", "--help").out
    assert "--schedule.order" in out and "--binary.beta" in out and "--distillation.loss" in out
