"""The image engine through its command: killed and resumed, on two processes, evaluated, refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from made import (
    CONFIGS,
    CPU,
    SHRINK,
    SMALL_HASH,
    by_hand,
    ecoformer,
    largest_difference,
    merged,
    placed,
    write_yaml,
)
from torch import Tensor, nn

from ecoformer.method.attention import eco_layers, start_epoch
from ecoformer.models.architectures import build
from ecoformer.models.pvt import PVTv2
from ecoformer.training.hashing import HashConfig
from ecoformer.training.images import NetworkConfig, build_network
from paperkit.data.images import ImageData
from paperkit.files.weights import read_checkpoint, read_weights
from paperkit.results.metrics import Metrics
from paperkit.testing.commands import at_call
from paperkit.testing.made_images import make_image_folder
from paperkit.testing.runs import check_same_runs
from paperkit.training.classification import classification_loss
from paperkit.training.optim import OptimConfig
from paperkit.training.optim import build as build_optimizer

pytestmark = pytest.mark.xdist_group("images")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, weights of stage 1, and stage 2 on them: four steps in two epochs, a fit in each."""
    folder = tmp_path_factory.mktemp("images")
    make_image_folder(folder / "images", per_class=4)
    torch.manual_seed(0)
    build("pvt_v2_b0_msa", **SHRINK, num_classes=2).save_pretrained(folder / "stage1" / "pvt_v2_b0")
    content = merged(CONFIGS / "imagenet" / "pvt_2_ecoformer.yaml")
    content["network"].update(options=SHRINK, weights="stage1/{name}")
    content["hash"].update(**SMALL_HASH, iterations=5, fit_lr=1.0)
    content["tuning"]["refit_every"] = 1
    content["optim"].update(warmup_epochs=1, lr=0.05)
    content["data"].update(root="images", batch_size=4, eval_batch_size=4, num_workers=0, input_size=64)
    content["trainer"].update(CPU, max_epochs=2)
    content["save_every"] = 1
    write_yaml(folder / "recipe.yaml", content)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run that nobody interrupted."""
    ecoformer.here("train", "--config", "recipe.yaml", "--name", "whole", cwd=folder)
    return folder / "runs" / "ecoformer" / "whole"


def test_killed_and_resumed_gives_the_same_run(folder: Path, whole: Path) -> None:
    """Killed at the beginning of the fourth step, in the middle of the second epoch, whose fit was made before."""
    words = ["train", "--config", "recipe.yaml", "--name", "cut"]
    step = "ecoformer.training.images:ImageTraining.training_step"
    ecoformer.child(*words, cwd=folder, patch=at_call(step, 4), code=-9)
    cut = folder / "runs" / "ecoformer" / "cut"
    assert not (cut / "finished").exists()
    torch.rand(7)  # another random state than the killed process had
    ecoformer.here("train", "--resume", "cut", cwd=folder)
    check_same_runs(whole, cut)


def test_the_flag_of_the_fit_is_in_the_checkpoint(whole: Path) -> None:
    flags = {key: value for key, value in read_checkpoint(whole / "checkpoints" / "last.ckpt")["state_dict"].items()
             if key.endswith("ksh.fitted")}  # fmt: skip
    assert len(flags) == 3 and all(map(bool, flags.values()))
    loaded = PVTv2.from_pretrained(whole / "model")
    assert all(layer.ksh.is_fitted for _, layer in eco_layers(loaded))


def test_each_epoch_of_the_schedule_fits_again(folder: Path, whole: Path) -> None:
    once = ["--name", "once", "--tuning.refit_every", "null"]
    ecoformer.here("train", "--config", "recipe.yaml", *once, cwd=folder)
    one, two = (read_weights(folder / "runs/ecoformer" / run / "model/model.safetensors") for run in ("once", "whole"))
    key = "block1.0.attn.fast_attention.ksh.anchor"
    assert not torch.equal(one[key], two[key])


def test_recomputed_activations_change_nothing(folder: Path, whole: Path) -> None:
    """Also in eval mode, where the network's own switch rests."""
    words = ["--name", "recomputed", "--savings.checkpointing", "true"]
    ecoformer.here("train", "--config", "recipe.yaml", *words, cwd=folder)
    one, two = (
        read_weights(folder / "runs/ecoformer" / run / "model/model.safetensors") for run in ("whole", "recomputed")
    )
    assert largest_difference(one, two) == 0


def test_evaluation_puts_energy_beside_accuracy(folder: Path, whole: Path) -> None:
    out = ecoformer.here("eval", "--ckpt", whole, cwd=folder).out
    assert "test/acc1" in out and "energy with full attention" in out and "energy unmodified" in out
    ecoformer.here("eval", "--config", "recipe.yaml", "--ckpt", whole / "model", "--output", "alone", cwd=folder)
    run, alone = (Metrics.read(path / "metrics.json") for path in (whole, folder / "alone"))
    for metric in ("test/acc1", "energy", "energy with full attention", "energy unmodified"):
        assert run.row("last", metric).values == alone.row("last", metric).values
    books = run.extra["energy"]
    assert books["network"]["attention_energy_pj"] < books["msa"]["attention_energy_pj"]
    assert run.row("last", "energy").mean == pytest.approx(books["network"]["energy_pj"] / 1e9)


def test_figure_of_a_run(folder: Path, whole: Path) -> None:
    assert "energy.png" in ecoformer.here("figures", whole, "--output", "drawn", cwd=folder).out
    assert [path.name for path in (folder / "drawn").iterdir()] == ["energy.png"]


def test_the_weights_of_stage_1_are_what_stage_2_begins_with(folder: Path) -> None:
    start = read_weights(folder / "stage1" / "pvt_v2_b0" / "model.safetensors")
    config = NetworkConfig(options=SHRINK, weights=str(folder / "stage1" / "{name}"))
    found = build_network(config, HashConfig(**SMALL_HASH), 2).state_dict()
    qkv = start["block1.0.attn.qkv.weight"]
    assert torch.equal(found["block1.0.attn.to_qk.weight"], qkv[:8])
    assert torch.equal(found["block1.0.attn.to_v.weight"], qkv[-8:])
    other = build_network(config, HashConfig(**SMALL_HASH), 3)  # a head of its own
    assert other.head.out_features == 3 and torch.equal(other.state_dict()["head.bias"], torch.zeros(3))


def test_two_processes_fit_on_the_first_ones_batch_and_train_as_by_hand(folder: Path) -> None:
    words = {
        "--config": "recipe.yaml", "--name": "two", "--data.batch_size": "2", "--tuning.mixup": "0",
        "--tuning.cutmix": "0", "--trainer.devices": "2", "--trainer.strategy": "ddp",
    }  # fmt: skip
    ecoformer.process("train", *(word for pair in words.items() for word in pair), cwd=folder)
    trained = read_weights(folder / "runs" / "ecoformer" / "two" / "model" / "model.safetensors")
    together, alone = (by_hand_images(folder, ranks) for ranks in ((0, 1), (0, 0)))
    assert largest_difference(trained, together) < 1e-5 and largest_difference(trained, alone) > 1e-3


def by_hand_images(folder: Path, ranks: tuple[int, int]) -> dict[str, Tensor]:
    pl.seed_everything(0, verbose=False)  # as the run does before it builds its network
    config = NetworkConfig(options=SHRINK, weights=str(folder / "stage1" / "{name}"))
    network = build_network(config, HashConfig(**SMALL_HASH, iterations=5, fit_lr=1.0), 2).eval()
    optim = OptimConfig(lr=0.05, lr_per_512=True, warmup_epochs=1, warmup_lr=1e-7, min_lr=1e-6, step_per="epoch", lag=1)
    optimizer, schedule = build_optimizer(network, optim, 2, 2, global_batch=4)
    options: dict[str, Any] = dict(num_classes=2, batch_size=2, num_workers=0, input_size=64, repeats=3)
    parts = [placed(ImageData(str(folder / "images"), **options), rank) for rank in ranks]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return classification_loss(model(batch[0]), batch[1], 0.1)

    def advance(done: int, epoch: int) -> None:
        schedule.advance(epoch + 1 if done % 2 == 0 else epoch)  # two steps an epoch

    return by_hand(network, optimizer, parts, loss, advance, lambda epoch: bool(start_epoch(network, epoch, 1)))


def test_a_nan_names_its_layer(folder: Path) -> None:
    words = ["--name", "nan", "--optim.lr", "1e30", "--optim.warmup_epochs", "0"]
    line = ecoformer.refused("train", "--config", "recipe.yaml", *words, cwd=folder)
    assert "is not finite at step 1" in line and "last good checkpoint: " in line
    assert "; the first layer without finite outputs is patch_embed1." in line


REFUSALS = {
    "--hash.nbits 0": "hash.nbits 0 is no length of a code",
    "--hash.supports 3": "hash.supports 3 are fewer than hash.topk 4",
    "--hash.supports 25": "has 16 tokens and the hash 25 supports: take hash.supports 16 at most",
    "--hash.bias 3": "bias 3.0 leaves negative similarities between codes of 16 bits",
    "--tuning.refit_every 0": "refit_every 0 is no number of epochs",
    "--ema.decay 0.9": "the mean of two fits of a hash is no hash",
    "--savings.compile true": "compile is not for EcoFormer's training",
    "--savings.patch_drop 0.5": "the convolutions of a pyramid need the whole grid",
    "--savings.keep_hardest 0.5": "a mixed image has no label",
    "--data.batch_size 3": "images are mixed in pairs",
    "--network.name pvt_v3": "no network 'pvt_v3_ecoformer'",
    "--network.attention linear": "no network 'pvt_v2_b0_linear'",
    "--data.root nowhere": "nowhere",
    "--data.size_schedule {0:32,1:64}": "has 4 tokens",
    "--network.weights nowhere.pth": "no weights at nowhere.pth to start from: finish the stage before",
    "--network.weights images": "no weights at images/model.safetensors to start from",
    "--network.weights eight": "has 8 bits over 12 supports, the network 16",
    "--network.weights stage1/pvt_v2_b0 --network.options.depths [1,2,1,1]": "is of no pvt_v2_b0",
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSALS)
def test_refused_in_one_line(words: str, folder: Path) -> None:
    if "eight" in words:
        build("pvt_v2_b0_ecoformer", **SHRINK, num_classes=2, nbits=8, supports=12).save_pretrained(folder / "eight")
    split = words.replace("{0:32,1:64}", "{0:_32,1:_64}").split()
    split = [word.replace("_32", " 32").replace("_64", " 64") if word.startswith("{") else word for word in split]
    line = ecoformer.refused("train", "--config", "recipe.yaml", *split, cwd=folder)
    assert REFUSALS[words] in line


def test_odd_codes_train(folder: Path) -> None:
    words = ["--name", "odd", "--hash.nbits", "7", "--trainer.max_epochs", "1", "--optim.warmup_epochs", "0"]
    ecoformer.here("train", "--config", "recipe.yaml", *words, cwd=folder)
    state = read_weights(folder / "runs/ecoformer/odd/model/model.safetensors")
    assert state["block1.0.attn.fast_attention.ksh.A"].shape == (1, 7, 12)


def test_half_copied_data_are_one_line(folder: Path, tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "half", per_class=2)
    for picture in (root / "train").rglob("*_1.JPEG"):
        picture.write_bytes(picture.read_bytes()[:300])
    words = ["--data.root", str(root), "--data.batch_size", "2", "--data.repeats", "1"]
    assert "_1.JPEG" in ecoformer.refused("train", "--config", "recipe.yaml", *words, cwd=folder)


def test_an_unfitted_hash_is_refused_at_eval_or_fitted_on_request(folder: Path) -> None:
    build("pvt_v2_b0_ecoformer", **SHRINK, num_classes=2, supports=12, fit={"topk": 4}).save_pretrained(folder / "bare")
    words = ["eval", "--config", "recipe.yaml", "--ckpt", "bare", "--output", "fitted"]
    assert "3 hashes were never fitted (block1.0.attn" in ecoformer.refused(*words, cwd=folder)
    ecoformer.here(*words, "--fit-hash", "4", cwd=folder)
    assert Metrics.read(folder / "fitted" / "metrics.json").row("last", "test/acc1").values


def test_bits_that_differ_from_the_config_are_one_line(folder: Path) -> None:
    build("pvt_v2_b0_ecoformer", **SHRINK, num_classes=2, supports=12).save_pretrained(folder / "sixteen")
    path = folder / "sixteen" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "nbits": 8}))
    line = ecoformer.refused("eval", "--config", "recipe.yaml", "--ckpt", "sixteen", cwd=folder)
    assert "has 16 bits over 12 supports, the network 8" in line
