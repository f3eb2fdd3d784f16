"""The supernet engine through its command: killed and resumed, on two processes, evaluated, searched, refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from made import CONFIGS, CPU, focusformer, merged, options_of, write_yaml

from focusformer.method.architecture import Architecture, SearchSpace
from focusformer.method.cost import LatencyTable
from focusformer.method.reinforce import Scores
from focusformer.method.strategies import Focus, training_losses
from focusformer.method.unsampled import clear_gradients
from focusformer.models.folders import SavedSupernet
from focusformer.models.saved_sampler import SavedSampler
from focusformer.training import images
from focusformer.training.held_out import HeldOutBatches
from focusformer.training.options import build_strategy, build_supernet, space_of
from focusformer.training.recipe import parameter_groups
from paperkit.data.images import ImageData
from paperkit.errors import UserError
from paperkit.files.weights import read_checkpoint, read_weights
from paperkit.results.metrics import Metrics
from paperkit.testing.commands import at_call
from paperkit.testing.made_images import make_image_folder
from paperkit.testing.runs import check_same_runs
from paperkit.training.classification import classification_loss
from paperkit.training.optim import build

pytestmark = pytest.mark.xdist_group("images")
SPACE: dict[str, Any] = {
    "SUPERNET": {"EMBED_DIM": 32, "DEPTH": 3, "NUM_HEADS": 4, "MLP_RATIO": 2.0, "head_dim": 8, "patch_size": 8},
    "SEARCH_SPACE": {"EMBED_DIM": [16, 24, 32], "DEPTH": [1, 2, 3], "NUM_HEADS": [1, 2, 4], "MLP_RATIO": [1.0, 2.0]},
}
STEPS = 6
"""Of a run: two epochs of three."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes, 12 to train on and 4 held out, a small space, and ImageNet's recipe over them."""
    folder = tmp_path_factory.mktemp("images")
    make_image_folder(folder / "images", per_class=8)
    write_yaml(folder / "space.yaml", SPACE)
    content = merged(CONFIGS / "imagenet" / "ti.yaml")
    content["network"]["space"] = "space.yaml"
    content["strategy"].update(warmup=0.17, interval=2, samples=4, reward_batch=2)
    content["sampler"].update(anchors=3, least=0.5)
    content["reinforce"].update(lr=0.05)
    content["optim"].update(warmup_epochs=0, lr=0.1)
    content["data"].update(
        root="images", num_classes=2, batch_size=4, eval_batch_size=4, num_workers=0, input_size=32, repeats=1,
        val_fraction=0.25,
    )  # fmt: skip
    content["trainer"].update(CPU, max_epochs=2)
    content["save_every"] = 1
    write_yaml(folder / "recipe.yaml", content)
    return folder


def run_of(folder: Path, name: str) -> Path:
    return folder / "runs" / "focusformer" / name


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run that nobody interrupted."""
    focusformer.here("train", "--config", "recipe.yaml", "--name", "whole", cwd=folder)
    return run_of(folder, "whole")


KILLS = {
    "in_the_first_epoch": ("focusformer.training.images:SupernetTraining.training_step", 3),
    "in_a_reward": ("focusformer.training.images:SupernetTraining.scores", 2),
    "in_the_second_epoch": ("focusformer.training.images:SupernetTraining.training_step", 6),
    "at_the_end": ("focusformer.training.images:finish", 1),
}


@pytest.mark.parametrize("place", KILLS)
def test_killed_and_resumed_gives_the_same_run(place: str, folder: Path, whole: Path) -> None:
    """Supernet, optimiser, sampler, its optimiser and baselines, counts, curves: bit by bit."""
    focusformer.child("train", "--config", "recipe.yaml", "--name", place, cwd=folder, patch=at_call(*KILLS[place]),
                      code=-9)  # fmt: skip
    cut = run_of(folder, place)
    assert not (cut / "finished").exists() and not (cut / "metrics.json").exists()
    torch.rand(7)  # another random state than the killed process had
    focusformer.here("train", "--resume", place, cwd=folder)
    check_same_runs(whole, cut)


def test_a_run_leaves_supernet_sampler_and_probes(whole: Path) -> None:
    supernet, sampler = SavedSupernet.from_pretrained(whole / "model"), SavedSampler.from_pretrained(whole / "sampler")
    assert supernet.space == sampler.space and supernet.sizes.num_classes == 2 and sampler.kinds == ["flops"]
    assert any(bool(p.any()) for name, p in sampler.named_parameters() if "policy.heads" in name)  # it has learned
    best = read_checkpoint(whole / "checkpoints" / "best.ckpt", advice=None)
    for key, value in read_weights(whole / "best_sampler" / "model.safetensors").items():
        assert torch.equal(value, best["strategy"]["sampler"][key])
    metrics = Metrics.read(whole / "metrics.json")
    assert {row.arm for row in metrics.rows} == {"smallest", "middle", "largest"}
    assert {row.metric for row in metrics.rows} == {"val/acc1", "parameters", "official FLOPs"}
    assert metrics.extra["evaluations"] == 4 * 2 and metrics.extra["draws"] == STEPS + 4 * 2
    assert SearchSpace.from_plain(metrics.extra["space"]) == supernet.space
    head = (whole / "csv" / "metrics.csv").read_text().splitlines()[0]
    for name in ("sampler/reward", "sampler/entropy", "sampler/feasible", "sampler/distance", "epoch/reward",
                 "val/acc1", "val/acc1_smallest", "train/flops"):  # fmt: skip
        assert name in head.split(","), name


def test_weights_never_see_what_is_held_out(folder: Path) -> None:
    made = options_of(images, folder / "recipe.yaml")
    data = ImageData(str(folder / "images"), **{**vars_of(made), "val_fraction": 0.25})
    train, held_out, test = (set(data.indices(part).tolist()) for part in ("train", "val", "test"))  # type: ignore[arg-type]
    assert len(train) == 12 and len(held_out) == 4 and not train & held_out and len(test) == 16


def vars_of(made: Any) -> dict[str, Any]:
    return dict(num_classes=2, batch_size=made.data.batch_size, num_workers=0, input_size=32)


def test_held_out_batches_are_a_function_of_their_number(folder: Path) -> None:
    data = ImageData(str(folder / "images"), num_classes=2, batch_size=4, num_workers=0, input_size=32,
                     val_fraction=0.25)  # fmt: skip
    data.setup()
    pictures: Any = data.val_dataloader().dataset
    one, other = (HeldOutBatches(pictures, 2, 0) for _ in range(2))
    forward = [one(number)[0] for number in (3, 4, 5)]
    assert torch.equal(other(5)[0], forward[2]) and torch.equal(other(3)[0], forward[0])
    assert not torch.equal(forward[0], forward[1])
    parts = [HeldOutBatches(pictures, 1, 0, rank, 2)(4)[0] for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), forward[1])
    with pytest.raises(UserError, match="a reward batch of 3 images on 2 process"):
        HeldOutBatches(pictures, 3, 0, 0, 2)


def test_evaluation_of_probes_and_of_an_architecture(folder: Path, whole: Path) -> None:
    out = focusformer.here("eval", "--ckpt", whole, "--output", "probes", cwd=folder).out
    assert out.count("test/acc1") == 3 and "official FLOPs" in out
    words = ["eval", "--config", "recipe.yaml", "--ckpt", whole / "best", "--architectures", '["24/2,4/1,2"]']
    focusformer.here(*words, "--output", "one", cwd=folder)
    row = Metrics.read(folder / "one" / "metrics.json").row("24/2,4/1,2", "test/acc1")
    assert 0 <= row.mean <= 100


def test_figures_of_a_run(folder: Path, whole: Path) -> None:
    out = focusformer.here("figures", whole, "--output", "drawn", cwd=folder).out
    assert {path.name for path in (folder / "drawn").iterdir()} == {
        "probes.png", "sampler.png", "policy.png", "sampled.png"
    }  # fmt: skip
    assert out.count(".png") == 4


@pytest.mark.parametrize(
    "words",
    [
        ["--strategy.name", "uniform", "--network.unsampled", "skip", "--trainer.precision", "bf16-mixed"],
        ["--strategy.name", "resource-uniform", "--ema.decay", "0.9"],
        ["--strategy.name", "sandwich", "--strategy.middle", "1"],
        ["--strategy.name", "best-of-k", "--trainer.accumulate_grad_batches", "2"],
        ["--sampler.masking", "false", "--reward.penalty", "absolute", "--sampler.cost", "params,flops"],
    ],
    ids=["uniform", "resource", "sandwich", "best", "penalty"],
)
def test_other_strategies_train(words: list[str], folder: Path, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id
    words = [*words, "--trainer.max_epochs", "1", "--name", name]
    focusformer.here("train", "--config", "recipe.yaml", *words, cwd=folder)
    assert (run_of(folder, name) / "sampler").exists() == (name == "penalty")


def test_two_processes_train_as_by_hand(folder: Path) -> None:
    """The same architectures on both ranks, gradients and rewards averaged, layers that a step leaves out untouched."""
    words = {
        "--config": "recipe.yaml", "--name": "two", "--data.batch_size": "2", "--strategy.reward_batch": "1",
        "--trainer.devices": "2", "--trainer.strategy": "ddp", "--mixing.mixup": "0", "--mixing.cutmix": "0",
        "--network.drop_path_rate": "0",
    }  # fmt: skip
    focusformer.process("train", *(word for pair in words.items() for word in pair), cwd=folder)
    trained, learned = (
        read_weights(run_of(folder, "two") / name / "model.safetensors") for name in ("model", "sampler")
    )
    supernet, sampler = trained_by_hand(folder)
    for found, by_hand in ((trained, supernet), (learned, sampler)):
        assert found.keys() == by_hand.keys()
        for key, value in by_hand.items():
            # A key bias has no true gradient: Adam turns its rounding noise into steps.
            tolerance = 0.05 if "qkv.bias" in key else 1e-3
            torch.testing.assert_close(found[key], value, rtol=0, atol=tolerance, msg=key)


def trained_by_hand(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Both ranks in this process, no Trainer."""
    made = options_of(images, folder / "recipe.yaml")
    made.network.space, made.network.drop_path_rate = str(folder / "space.yaml"), 0.0
    data = [placed_data(folder, rank) for rank in (0, 1)]
    pl.seed_everything(0, verbose=False)
    space = space_of(made.network, data[0])
    model = build_supernet(made.network, space).train()
    strategy = build_strategy(made, space, STEPS)
    assert isinstance(strategy, Focus)
    optimizer, schedule = build(parameter_groups(model, 0.05), made.optim, 3, 2, global_batch=4)
    pictures: Any = data[0].val_dataloader().dataset
    held_out = [HeldOutBatches(pictures, 1, 0, rank, 2) for rank in (0, 1)]
    step = 0

    def scores_after(step: int) -> Any:
        @torch.no_grad()
        def scores(architectures: list[Architecture]) -> Scores:
            found = []
            model.eval()
            for part, labels in (held(step) for held in held_out):
                logits = [model(part, one) for one in architectures]
                accuracy = torch.stack([(one.argmax(1) == labels).float().mean() for one in logits])
                loss = torch.stack([torch.nn.functional.cross_entropy(one, labels) for one in logits])
                found.append(torch.stack([accuracy, loss]))
            model.train()
            return Scores(*(sum(found) / 2))

        return scores

    for epoch in range(2):
        loaders = [part.train_dataloader() for part in data]
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        for batches in zip(*loaders, strict=True):
            if step:
                strategy.learn(step - 1, scores_after(step - 1))
            passes = strategy.plan(step, scores_after(step))
            clear_gradients(optimizer)
            for pictures_, labels in batches:
                training_losses(model, passes, pictures_, labels,
                                lambda a, b: classification_loss(a, b, 0.1) / 2, torch.Tensor.backward)  # fmt: skip
            optimizer.step()
            step += 1
        schedule.advance(epoch + 1)
    return model.state_dict(), strategy.sampler.state_dict()


def placed_data(folder: Path, rank: int) -> ImageData:
    """The images as a process of two sees them."""
    data = ImageData(
        str(folder / "images"), num_classes=2, batch_size=2, num_workers=0, input_size=32, val_fraction=0.25
    )
    trainer: Any = SimpleNamespace(global_rank=rank, world_size=2, overfit_batches=0, current_epoch=0)
    data.trainer = trainer
    data.setup()
    return data


def test_what_no_step_has_used_stays_as_it_was(folder: Path) -> None:
    """The deepest layer, when only the smallest architecture is trained: no gradient, no decay, no step."""
    made = options_of(images, folder / "recipe.yaml")
    made.network.space = str(folder / "space.yaml")
    space = space_of(made.network, placed_data(folder, 0))
    model = build_supernet(made.network, space)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer, _ = build(parameter_groups(model, 0.05), made.optim, 3, 2, global_batch=4)
    for _ in range(2):
        clear_gradients(optimizer)
        model(torch.randn(2, 3, 32, 32), space.smallest()).sum().backward()
        optimizer.step()
    same = {key for key, value in model.state_dict().items() if torch.equal(value, before[key])}
    assert {key for key in before if key.startswith(("blocks.1.", "blocks.2."))} <= same
    assert not any(key.startswith("blocks.0.fc") for key in same)


def test_search_of_a_run(folder: Path, whole: Path) -> None:
    """One call is one evaluation; its architecture keeps the budget; every method tells what it cost."""
    sampler = SavedSampler.from_pretrained(whole / "sampler")
    budget = sampler.constraint().anchors[1].item()
    for method, least, most in (("greedy", 1, 1), ("best", 1, 6), ("random", 8, 8), ("evolution", 1, 8)):
        words = ["search", "--ckpt", whole, "--flops", budget, "--method", method, "--samples", 5, "--evaluations", 8]
        out = focusformer.here(*words, "--output", method, "--test", cwd=folder).out
        found = json.loads(next((folder / method).glob("*.json")).read_text())
        chosen = Architecture.parse(found["architecture"])
        assert sampler.reachable["flops"].window(budget).holds(found["official_flops"])
        assert least <= found["evaluations"] <= most and found["draws"] >= found["evaluations"]
        assert found["official"] == chosen.to_official() and str(chosen) in out and "test accuracy" in out
    best = focusformer.here("search", "--ckpt", whole / "best", "--flops", budget, "--output", "b", cwd=folder).out
    assert "held-out accuracy" in best


def test_a_sampler_of_a_measured_latency(folder: Path) -> None:
    """Trained and searched by a table; another constraint is refused by name."""
    choices = SPACE["SEARCH_SPACE"]
    stem: dict[int, float] = dict.fromkeys(choices["EMBED_DIM"], 0.1)
    blocks = {(e, h, r): 1e-3 * e * (h + r) for e in stem for h in choices["NUM_HEADS"] for r in choices["MLP_RATIO"]}
    (folder / "table.json").write_text(json.dumps(LatencyTable(stem, blocks, "made").to_plain()))
    words = ["--sampler.cost", "latency", "--sampler.latency_table", "table.json", "--trainer.max_epochs", "1"]
    focusformer.here("train", "--config", "recipe.yaml", *words, "--name", "latency", cwd=folder)
    run = run_of(folder, "latency")
    focusformer.here("search", "--ckpt", run, "--latency", "0.3ms", "--output", "latency", cwd=folder)
    found = json.loads((folder / "latency" / "latency-0.3ms-greedy.json").read_text())
    assert 0.15 <= found["latency"] <= 0.3
    table = LatencyTable.read(folder / "table.json")
    assert found["latency"] == pytest.approx(table(Architecture.parse(found["architecture"])))
    assert "ask by --latency" in focusformer.refused("search", "--ckpt", run, "--flops", "500k", cwd=folder)
    line = focusformer.refused("search", "--ckpt", run, "--latency", "0.01ms", cwd=folder)
    assert "the nearest possible budget is" in line


def test_fine_tuning_of_what_a_search_found(folder: Path, whole: Path) -> None:
    """A sub-network of the run, killed and resumed, evaluated; with other classes its head begins anew."""
    content = merged(CONFIGS / "finetune" / "cifar100.yaml")
    content["network"].update(weights=str(whole), architecture="24/2,4/1,2")
    content["optim"].update(warmup_epochs=0)
    content["data"].update(root="images", dataset="imagenet", num_classes=2, batch_size=4, num_workers=0, input_size=32,
                           val_fraction=0.25)  # fmt: skip
    content["trainer"].update(CPU, max_epochs=2)
    content["save_every"] = 1
    write_yaml(folder / "finetune.yaml", content)
    focusformer.here("train", "--config", "finetune.yaml", "--name", "tuned", cwd=folder)
    patch = at_call("focusformer.training.finetune:FineTuning.training_step", 5)
    focusformer.child("train", "--config", "finetune.yaml", "--name", "cut", cwd=folder, patch=patch, code=-9)
    focusformer.here("train", "--resume", "cut", cwd=folder)
    check_same_runs(run_of(folder, "tuned"), run_of(folder, "cut"))
    out = focusformer.here("eval", "--ckpt", run_of(folder, "tuned"), cwd=folder).out
    assert "test/acc1" in out and "parameters" in out
    out = focusformer.here("train", "--config", "finetune.yaml", "--name", "three", "--data.num_classes", "3",
                           "--trainer.max_epochs", "1", cwd=folder).out  # fmt: skip
    assert "the head begins anew, with 3 classes for 2" in out
    line = focusformer.refused("train", "--config", "finetune.yaml", "--data.input_size", "64", cwd=folder)
    assert "is for images of 32 px; data.input_size is 64" in line


REFUSALS = {
    "--network.space huge": "no space 'huge'",
    "--network.options.patch_size 5": "no multiple of patch_size 5",
    "--network.options.depth 0": "depth",
    "--network.weights nowhere.pth": "nowhere.pth",
    "--strategy.samples 0": "at least 1 each",
    "--strategy.warmup 2": "are shares in [0, 1]",
    "--strategy.reward_batch 5": "take a smaller strategy.reward_batch",
    "--reinforce.baseline group --strategy.constraints 4": "a group's baseline needs several samples for a budget",
    "--sampler.cost time": "sampler.cost 'time' is none of flops, params, macs, latency",
    "--sampler.cost latency": "a latency needs its table",
    "--sampler.anchors 0": "0 anchors",
    "--sampler.masking false": "nothing would keep the budget",
    "--probes.named.big 64/4/2": "is above the supernet's 32",
    "--probes.named.largest 16/1/1": "probe 'largest'",
    "--data.val_fraction 0": "need images held out of the training set",
    "--data.batch_size 3": "images are mixed in pairs",
    "--data.root nowhere": "nowhere",
    "--savings.compile true": "each architecture has shapes of its own",
    "--savings.patch_drop 0.5": "need the whole grid of tokens",
    "--trainer.strategy deepspeed": "of which each step uses a slice: take ddp",
}


@pytest.mark.parametrize("words", REFUSALS)
def test_refused_in_one_line(words: str, folder: Path) -> None:
    line = focusformer.refused("train", "--config", "recipe.yaml", *words.split(), cwd=folder)
    assert REFUSALS[words] in line


def test_a_nan_stops_the_run(folder: Path) -> None:
    line = focusformer.refused("train", "--config", "recipe.yaml", "--name", "nan", "--optim.lr", "1e30", cwd=folder)
    assert "is not finite at step" in line and "last good checkpoint: " in line
