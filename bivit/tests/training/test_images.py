"""The image engine through its command: killed in and between its stages, on two processes, evaluated, refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made import CONFIGS, CPU, DEIT, bivit, merged, small_network, write_yaml

from bivit.method.distillation import distribution_loss
from bivit.models.binarize import METHODS, BinaryConfig, binary_layers
from bivit.models.classifier import from_pretrained, save_pretrained
from bivit.models.keys import begin
from bivit.training.distillation import Distillation
from bivit.training.images import NetworkConfig, build_student, parameter_groups
from bivit.training.stages import stages
from paperkit.data.images import ImageData
from paperkit.data.seeding import seed_of
from paperkit.errors import UserError
from paperkit.files.weights import read_weights
from paperkit.results.metrics import Metrics
from paperkit.testing.commands import at_call
from paperkit.testing.made_images import make_image_folder
from paperkit.testing.runs import check_same_runs
from paperkit.training.optim import OptimConfig, build

pytestmark = pytest.mark.xdist_group("images")
NAME = "deit_tiny_patch16_224"
SCALE = "blocks.0.{}.scaling_factor"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a float teacher, and CLB on them: two stages of one epoch, two steps each."""
    folder = tmp_path_factory.mktemp("images")
    make_image_folder(folder / "images", per_class=4)
    save_pretrained(small_network(config=None, classes=2), folder / "teacher" / NAME, NAME, None, DEIT)
    content = merged(CONFIGS / "imagenet" / "base.yaml", CONFIGS / "models" / "deit_tiny.yaml")
    content["network"].update(options=DEIT, weights="teacher/{name}")
    content["optim"].update(warmup_epochs=0, lr=0.01)
    content["data"].update(
        root="images", num_classes=2, batch_size=4, eval_batch_size=4, num_workers=0, input_size=32, repeats=1
    )
    content["trainer"].update(CPU, max_epochs=2)
    content["save_every"] = 1
    write_yaml(folder / "recipe.yaml", content)
    return folder


def run_of(folder: Path, name: str) -> Path:
    return folder / "runs" / "bivit" / name


def weights(run: Path, place: str = "model/model.safetensors") -> dict[str, torch.Tensor]:
    return read_weights(run / place)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run that nobody interrupted."""
    bivit.here("train", "--config", "recipe.yaml", "--name", "whole", cwd=folder)
    return run_of(folder, "whole")


KILLS = {
    "in_the_first_stage": ("bivit.training.images:ImageTraining.training_step", 2),
    "at_the_end_of_the_first_stage": ("bivit.training.images:last_evaluation", 1),
    "between_the_stages": ("bivit.training.images:train_stage", 2),
    "in_the_second_stage": ("bivit.training.images:ImageTraining.training_step", 4),
    "after_the_last_stage": ("bivit.training.images:finish", 1),
}


@pytest.mark.parametrize("place", KILLS)
def test_killed_and_resumed_gives_the_same_run(place: str, folder: Path, whole: Path) -> None:
    words = ["train", "--config", "recipe.yaml", "--name", place]
    bivit.child(*words, cwd=folder, patch=at_call(*KILLS[place]), code=-9)
    cut = run_of(folder, place)
    assert not (cut / "finished").exists() and not (cut / "metrics.json").exists()
    torch.rand(7)  # another random state than the killed process had
    bivit.here("train", "--resume", place, cwd=folder)
    check_same_runs(whole, cut)


def test_second_stage_keeps_the_scales_of_attention_and_starts_those_of_mlps(whole: Path) -> None:
    first = weights(whole, "stages/stage_1/weights.safetensors")
    assert SCALE.format("attn.qkv") in first and SCALE.format("mlp.fc1") not in first
    network = NetworkConfig(name=NAME, options=DEIT)
    start = build_student(network, METHODS["bivit"], 2, 32, first).state_dict()
    assert torch.equal(start[SCALE.format("attn.qkv")], first[SCALE.format("attn.qkv")])
    mean = first["blocks.0.mlp.fc1.weight"].abs().mean(1, keepdim=True)
    torch.testing.assert_close(start[SCALE.format("mlp.fc1")], mean)
    last = weights(whole)
    assert not torch.equal(last[SCALE.format("mlp.fc1")], mean) and last.keys() == start.keys()


def test_metrics_of_a_run(whole: Path) -> None:
    metrics = Metrics.read(whole / "metrics.json")
    assert {row.metric for row in metrics.rows} == {"val/acc1", "operations", "packed"}
    told = metrics.extra["stages"]
    assert [stage["binary"]["mlp"] for stage in told] == ["float", "w1a32"]
    assert [stage["epochs"] for stage in told] == [1, 1] and all("val/acc1" in stage["measured"] for stage in told)
    for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "csv/metrics.csv"):
        assert all((whole / "stages" / stage / name).is_file() for stage in ("stage_1", "stage_2"))


def test_evaluation_of_a_run_and_of_its_folder(folder: Path, whole: Path) -> None:
    out = bivit.here("eval", "--ckpt", whole, cwd=folder).out
    assert "test/acc1" in out and "operations" in out
    bivit.here("eval", "--config", "recipe.yaml", "--ckpt", whole / "model", "--output", "alone", cwd=folder)
    run, alone = (Metrics.read(path / "metrics.json") for path in (whole, folder / "alone"))
    for metric in ("test/acc1", "operations", "packed"):
        assert run.row("last", metric).values == alone.row("last", metric).values
    best = from_pretrained(whole / "best")
    assert len(binary_layers(best)) == 8


def test_evaluation_on_bits(folder: Path, whole: Path) -> None:
    """Packed on the fly, and from a packed file: the same accuracy; the file's bytes are those on the disk."""
    bivit.here("eval", "--ckpt", whole / "model", "--packed", "--output", "fly", cwd=folder)
    bivit.here("pack", whole, "--rest", "fp32", "--output", "packed.safetensors", cwd=folder)
    words = ["--config", "recipe.yaml", "--ckpt", "packed.safetensors", "--output", "file"]
    bivit.here("eval", *words, cwd=folder)
    bivit.here("eval", "--ckpt", whole / "model", "--output", "plain", cwd=folder)
    fly, file, plain = (Metrics.read(folder / name / "metrics.json") for name in ("fly", "file", "plain"))
    assert fly.row("packed", "test/acc1").values == plain.row("last", "test/acc1").values
    assert file.row("packed", "test/acc1").values == plain.row("last", "test/acc1").values
    size = (folder / "packed.safetensors").stat().st_size
    assert file.row("packed", "packed").mean == pytest.approx(size / 1e6)


def test_figures_of_a_run(folder: Path, whole: Path) -> None:
    image = next((folder / "images" / "val").rglob("*.JPEG"))
    out = bivit.here("figures", whole, "--images", json.dumps([str(image)]), "--output", "drawn", cwd=folder).out
    assert {path.name for path in (folder / "drawn").iterdir()} == {"accuracy.png", "scales.png", "gradients.png"}
    assert out.count(".png") == 3


@pytest.mark.parametrize(
    "words",
    [
        ["--schedule.order", "two_steps", "--binary.mlp", "w1a1"],
        ["--schedule.order", "one_step", "--distillation.loss", "directions"],
        ["--schedule.order", "one_step", "--ema.decay", "0.9", "--savings.checkpointing", "true"],
    ],
    ids=["two_steps", "directions", "switches"],
)
def test_other_ways_train(words: list[str], folder: Path, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id
    bivit.here("train", "--config", "recipe.yaml", "--name", name, *words, cwd=folder)
    assert (run_of(folder, name) / "model" / "config.json").is_file()


def test_a_teacher_is_trained_by_the_labels(folder: Path) -> None:
    words = ["--name", "float", "--binary.attention", "float", "--binary.mlp", "float", "--schedule.order", "one_step"]
    bivit.here("train", "--config", "recipe.yaml", *words, "--distillation.loss", "labels", cwd=folder)
    assert not any("scaling_factor" in key for key in weights(run_of(folder, "float")))
    line = bivit.refused("train", "--config", "recipe.yaml", "--distillation.teacher", "runs/bivit/whole", cwd=folder)
    assert "runs/bivit/whole is binary" in line and "a teacher is a float network" in line


def test_two_processes_train_as_by_hand(folder: Path) -> None:
    """Both stages on two ranks: in this process the gradients of both halves are averaged."""
    words = {
        "--config": "recipe.yaml", "--name": "two", "--data.batch_size": "2", "--trainer.devices": "2",
        "--trainer.strategy": "ddp", "--distillation.mixup": "0", "--distillation.cutmix": "0",
    }  # fmt: skip
    bivit.process("train", *(word for pair in words.items() for word in pair), cwd=folder)
    trained = weights(run_of(folder, "two"))
    by_hand = trained_by_hand(folder)
    assert trained.keys() == by_hand.keys()
    for key, value in by_hand.items():
        torch.testing.assert_close(trained[key], value, rtol=0, atol=2e-5, msg=key)


def trained_by_hand(folder: Path) -> dict[str, torch.Tensor]:
    """CLB written out: both stages, both ranks, no Trainer."""
    state = read_weights(folder / "teacher" / NAME / "model.safetensors")
    teacher = small_network(config=None, classes=2)
    teacher.load_state_dict(state)
    for number, stage in enumerate(stages(METHODS["bivit"], "clb", 2)):
        student = small_network(config=None, classes=2)
        begin(student, stage.binary, state, "the stage before")
        student.train()
        optim = OptimConfig("adam", lr=0.01, weight_decay=0.0, warmup_epochs=0, warmup_lr=1e-6, min_lr=1e-5)
        optimizer, schedule = build(parameter_groups(student, 0.0), optim, 2, 1, global_batch=4)
        parts = [placed_data(folder, rank, number) for rank in (0, 1)]
        for step, batches in enumerate(zip(*(part.train_dataloader() for part in parts), strict=True), 1):
            optimizer.zero_grad()
            for images, _ in batches:
                (distribution_loss(student(images), teacher(images)) / 2).backward()
            optimizer.step()
            schedule.advance(step)
        state = {key: value.clone() for key, value in student.state_dict().items()}
    return state


def placed_data(folder: Path, rank: int, stage: int) -> ImageData:
    """The images as a process of two sees them in a stage."""
    data = ImageData(
        str(folder / "images"), num_classes=2, batch_size=2, num_workers=0, input_size=32, seed=seed_of(0, stage)
    )
    trainer: Any = SimpleNamespace(global_rank=rank, world_size=2, overfit_batches=0, current_epoch=0)
    data.trainer = trainer
    data.setup()
    return data


def test_scales_have_no_weight_decay() -> None:
    network = small_network()
    decayed, free = parameter_groups(network, 0.05)
    assert decayed["weight_decay"] == 0.05 and free["weight_decay"] == 0.0
    names = {id(p): name for name, p in network.named_parameters()}
    assert not any("scaling_factor" in names[id(p)] for p in decayed["params"])
    assert sum("scaling_factor" in names[id(p)] for p in free["params"]) == 8
    assert {names[id(p)] for p in free["params"]} >= {"pos_embed", "cls_token", "norm.weight", "head.bias"}


def test_teacher_sees_the_students_images_in_eval_mode() -> None:
    teacher, seen = small_network(config=None, classes=2), []
    teacher.train()
    distillation = Distillation(teacher)
    teacher.register_forward_pre_hook(lambda module, args: seen.append((module.training, args[0])))
    student = small_network(classes=2).train()
    images = torch.randn(2, 3, 32, 32)
    distillation.train()(student, images).backward()
    assert seen[0][0] is False and seen[0][1] is images
    assert all(p.grad is None for p in teacher.parameters()) and not list(distillation.parameters())


@pytest.mark.parametrize(
    ("order", "config", "forms"),
    [
        ("one_step", METHODS["bivit"], [("w1a1", "w1a32", 1.0, 5)]),
        ("clb", METHODS["bivit"], [("w1a1", "float", 1.0, 2), ("w1a1", "w1a32", 1.0, 3)]),
        ("two_steps", METHODS["bivit"], [("w32a1", "float", 1.0, 2), ("w1a1", "w1a32", 1.0, 3)]),
        ("two_steps", BinaryConfig(mlp="w1a1"), [("w32a1", "w32a1", 1.0, 2), ("w1a1", "w1a1", 1.0, 3)]),
        ("depth", METHODS["bivit"], [("w1a1", "w1a32", i / 4, 1 + (i == 4)) for i in range(1, 5)]),
    ],
)
def test_stages(order: Any, config: BinaryConfig, forms: list[tuple[str, str, float, int]]) -> None:
    found = stages(config, order, 5)
    assert [(s.binary.attention_bits, s.binary.mlp, s.binary.depth, s.epochs) for s in found] == forms
    assert found[-1].binary == config
    with pytest.raises(UserError, match="max_epochs 0"):
        stages(config, order, 0)


REFUSALS = {
    "--distillation.teacher none.pth": "no weights at none.pth",
    "--network.weights null": "needs a teacher",
    "--network.name deit_huge": "timm has no network 'deit_huge'",
    "--network.name hf-hub:someone/net": "timm has no network 'hf-hub:someone/net'",
    "--network.options.in_chans 1": "in_chans 1",
    "--network.options.checkpoint_path x.pth": "checkpoint_path is no size of a network",
    "--network.options.depth 3": "does not fit",
    "--binary.mlp float": "leaves one of them float",
    "--binary.beta 2": "beta 2",
    "--binary.attention_linear pwx": "pwx",
    "--schedule.order depth": "schedule.order depth has 4 stages",
    "--savings.attention eager": "a binary attention has one form",
    "--savings.keep_hardest 0.5": "keep_hardest 0.5",
    "--data.batch_size 3": "images are mixed in pairs",
    "--data.root nowhere": "nowhere",
    "--data.num_classes 3": "it cannot teach",
    "--distillation.loss directions --savings.checkpointing true": "leave checkpointing and compile off",
}


@pytest.mark.parametrize("words", REFUSALS)
def test_refused_in_one_line(words: str, folder: Path) -> None:
    line = bivit.refused("train", "--config", "recipe.yaml", *words.split(), cwd=folder)
    assert REFUSALS[words] in line


def test_a_nan_stops_the_run(folder: Path) -> None:
    line = bivit.refused("train", "--config", "recipe.yaml", "--name", "nan", "--optim.lr", "1e30", cwd=folder)
    assert "is not finite at step" in line and "last good checkpoint: " in line
