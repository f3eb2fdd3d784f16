"""The arena's tasks: their data as they come, and short runs through the command: killed, on two processes, refused."""

import copy
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from made import (
    CONFIGS,
    CPU,
    by_hand,
    ecoformer,
    largest_difference,
    make_listops,
    make_pairs,
    make_pathfinder,
    make_task,
    make_texts,
    merged,
    options_of,
    placed,
    write_yaml,
)
from torch import Tensor, nn
from torch.nn import functional as F

from ecoformer.method.attention import fit_hashes
from ecoformer.training import lra
from ecoformer.training.encoder import Encoder
from ecoformer.training.hashing import fit_ahead
from ecoformer.training.listops import SHORT, encode, examples
from ecoformer.training.pathfinder import pathfinder_images, setting
from ecoformer.training.sequences import SequenceData
from paperkit.errors import UserError
from paperkit.files.weights import read_weights
from paperkit.results.metrics import Metrics
from paperkit.testing.commands import at_call
from paperkit.testing.made_images import make_cifar
from paperkit.testing.runs import check_same_runs
from paperkit.training.savings import Savings

pytestmark = pytest.mark.xdist_group("lra")
TREES: dict[str, Any] = {"max_depth": 5, "max_args": 5, "min_tokens": 10, "max_tokens": 64, "max_length": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The short ListOps setting, smaller: three epochs of four steps, and a fit in the middle of the second."""
    folder = tmp_path_factory.mktemp("lra")
    content = merged(CONFIGS / "lra" / "listops_short.yaml")
    content["data"].update(root="cache", samples=[64, 32, 48], batch_size=16)
    content["network"].update(layers=1, dim=16, inner=16, mlp=32, dropout=0.1)
    content["hash"].update(supports=12, topk=4, iterations=5, fit="adam")
    content["recipe"].update(steps=12, warmup_steps=2, refit_steps=[6], lr=0.02)
    content["trainer"] = dict(CPU)
    content["save_every"] = 1
    write_yaml(folder / "short.yaml", content)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run that nobody interrupted."""
    ecoformer.here("train", "--config", "short.yaml", "--name", "whole", cwd=folder)
    return folder / "runs" / "ecoformer" / "whole"


def test_killed_and_resumed_gives_the_same_run(folder: Path, whole: Path) -> None:
    """Killed just before the step that fits again, within the second epoch."""
    step = "ecoformer.training.lra:SequenceTraining.training_step"
    words = ["train", "--config", "short.yaml", "--name", "cut"]
    ecoformer.child(*words, cwd=folder, patch=at_call(step, 7), code=-9)
    cut = folder / "runs" / "ecoformer" / "cut"
    assert not (cut / "finished").exists()
    torch.rand(7)  # another random state than the killed process had
    ecoformer.here("train", "--resume", "cut", cwd=folder)
    check_same_runs(whole, cut)


SAVINGS = {
    "--savings.checkpointing": "true", "--savings.keep_hardest": "0.5", "--ema.decay": "0.5", "--ema.start_step": "2",
    "--recipe.refit_steps": "[]", "--recipe.steps": "8",
}  # fmt: skip


def test_with_savings_killed_and_resumed_gives_the_same_run(folder: Path) -> None:
    """Recomputed activations, the hardest half of a batch and averaged weights; killed within the second epoch."""
    words = [word for pair in SAVINGS.items() for word in pair]
    ecoformer.here("train", "--config", "short.yaml", *words, "--name", "saving", cwd=folder)
    words += ["--name", "saving_cut"]
    step = "ecoformer.training.lra:SequenceTraining.training_step"
    ecoformer.child("train", "--config", "short.yaml", *words, cwd=folder, patch=at_call(step, 6), code=-9)
    torch.rand(7)
    ecoformer.here("train", "--resume", "saving_cut", cwd=folder)
    check_same_runs(folder / "runs/ecoformer/saving", folder / "runs/ecoformer/saving_cut")


def test_sharpness_aware_steps_are_others(folder: Path, whole: Path) -> None:
    words = ["--savings.sam_rho", "0.05", "--recipe.steps", "4", "--name"]
    ecoformer.here("train", "--config", "short.yaml", *words, "sharp", cwd=folder)
    words[1] = "0"
    ecoformer.here("train", "--config", "short.yaml", *words, "plain", cwd=folder)
    one, two = (read_weights(folder / "runs/ecoformer" / run / "model/model.safetensors") for run in ("sharp", "plain"))
    assert 1e-6 < largest_difference(one, two) < 1


def test_best_is_of_the_highest_validation(folder: Path, whole: Path) -> None:
    with (whole / "csv" / "metrics.csv").open(newline="") as file:
        found = [float(row["val/acc1"]) for row in csv.DictReader(file) if row["val/acc1"]]
    assert len(found) == 3
    words = ["eval", "--ckpt", str(whole / "best"), "--split", "val", "--output", "best", "--config", "short.yaml"]
    ecoformer.here(*words, cwd=folder)
    best = Metrics.read(folder / "best" / "metrics.json").row("ecoformer", "val/acc1").mean
    assert best == pytest.approx(100 * max(found))


def test_figures_of_a_run(folder: Path, whole: Path) -> None:
    drawn = ecoformer.here("figures", whole, "--sample", "3", "--output", "drawn", cwd=folder).out
    assert all(f"{name}.png" in drawn for name in ("curves", "energy_by_length", "attention_maps"))
    assert all(path.stat().st_size > 5000 for path in (folder / "drawn").iterdir())
    assert "--sample 48 is none of the 48 test samples" in ecoformer.refused(
        "figures", whole, "--sample", "48", cwd=folder
    )


def test_recomputed_blocks_give_the_same_gradients() -> None:
    """With dropout, and from the batch that fits on."""
    torch.manual_seed(0)
    hash_ = {"nbits": 8, "supports": 6, "fit": {"topk": 3, "iterations": 3}}
    plain = Encoder(20, 5, 40, layers=2, heads=2, dim=16, inner=16, mlp=16, dropout=0.3, hash_=hash_)
    again, tokens = copy.deepcopy(plain), torch.randint(1, 20, (3, 24))
    again.set_grad_checkpointing()
    for model in (plain, again):
        torch.manual_seed(1)
        fit_ahead(model, tokens, Savings(checkpointing=True))
        model(tokens).square().sum().backward()
    for one, two in zip(plain.parameters(), again.parameters(), strict=True):
        assert one.grad is not None and torch.equal(one.grad, two.grad)


def test_metrics_hold_the_majority_rate_beside_the_accuracy(folder: Path, whole: Path) -> None:
    metrics = Metrics.read(whole / "metrics.json")
    data = SequenceData("listops", str(folder / "cache"), "generator", samples=(64, 32, 48), **TREES)
    labels = data.split("test").labels
    assert len(labels) == 48
    assert metrics.row("ecoformer", "test/majority").mean == pytest.approx(100 * np.bincount(labels).max() / 48)
    ecoformer.here("eval", "--ckpt", whole, "--output", "again", cwd=folder)
    again = Metrics.read(folder / "again" / "metrics.json")
    for metric in ("test/acc1", "test/majority", "attention energy", "softmax energy"):
        assert again.row("ecoformer", metric).values == metrics.row("ecoformer", metric).values
    assert metrics.row("ecoformer", "attention energy").mean < metrics.row("ecoformer", "softmax energy").mean


def test_the_fit_of_a_later_step_is_made(folder: Path, whole: Path) -> None:
    words = ["--name", "once", "--recipe.refit_steps", "[]"]
    ecoformer.here("train", "--config", "short.yaml", *words, cwd=folder)
    key = "blocks.0.attn.fast_attention.ksh.anchor"
    one, two = (read_weights(folder / "runs/ecoformer" / run / "model/model.safetensors") for run in ("once", "whole"))
    assert not torch.equal(one[key], two[key])


def test_two_processes_train_as_by_hand(folder: Path, whole: Path) -> None:
    words = {
        "--config": "short.yaml", "--name": "two", "--data.batch_size": "8", "--trainer.devices": "2",
        "--trainer.strategy": "ddp", "--network.dropout": "0", "--recipe.steps": "4", "--recipe.refit_steps": "[]",
    }  # fmt: skip
    ecoformer.process("train", *(word for pair in words.items() for word in pair), cwd=folder)
    trained = read_weights(folder / "runs" / "ecoformer" / "two" / "model" / "model.safetensors")
    together, alone = (by_hand_sequences(folder, ranks) for ranks in ((0, 1), (0, 0)))
    assert largest_difference(trained, together) < 1e-5 and largest_difference(trained, alone) > 1e-3


def by_hand_sequences(folder: Path, ranks: tuple[int, int]) -> dict[str, Tensor]:
    made = options_of(lra, folder / "short.yaml")
    made.network.dropout, made.recipe.steps, made.recipe.refit_steps = 0.0, 4, []
    pl.seed_everything(0, verbose=False)  # as the run does before it builds its network
    network = lra.build_encoder(made.network, made.hash, made.data).train()
    chosen = lra.SequenceTraining(network, made.recipe, 4, 10).configure_optimizers()
    data = [
        placed(
            SequenceData("listops", str(folder / "cache"), "generator", samples=(64, 32, 48), batch_size=8, **TREES), r
        )
        for r in ranks
    ]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    curve = chosen["lr_scheduler"]["scheduler"]
    return by_hand(network, chosen["optimizer"], data, loss, lambda done, epoch: curve.step(), epochs=1)


def test_a_short_run_learns() -> None:
    """Full attention and EcoFormer on short ListOps: the loss of the last steps is below that of the first."""
    data = SequenceData("listops", "unused", "files", batch_size=32, **TREES)
    kept = list(zip(range(600), examples(0, SHORT), strict=False))
    tokens = nn.utils.rnn.pad_sequence([torch.tensor(encode(e.tokens)) for _, e in kept], True)
    labels = torch.tensor([e.target for _, e in kept])
    for arm in ("transformer", "ecoformer"):
        torch.manual_seed(0)
        config = lra.EncoderConfig(arm, layers=1, heads=2, dim=32, inner=32, mlp=64, dropout=0.0)
        network = lra.build_encoder(config, lra.HashConfig(supports=12, topk=4, supports_from="batch"), data)
        optimizer, losses = torch.optim.AdamW(network.parameters(), 3e-3), []
        for step in range(60):
            part = torch.randint(600, (32,), generator=torch.Generator().manual_seed(step))
            loss = F.cross_entropy(network(tokens[part]), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:10]), arm


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("arm", ["transformer", "shared_qk", "performer", "elu", "ecoformer"])
def test_padding_takes_part_in_nothing(arm: Any, pooling: Any) -> None:
    """Longer padding leaves the logits alone, and so do the other samples (Performer's stabiliser is the whole batch's
    largest value, as released, and leaves a trace of them)."""
    torch.manual_seed(0)
    hash_ = {"nbits": 8, "supports": 6, "fit": {"topk": 3, "supports": "batch"}} if arm == "ecoformer" else None
    model = Encoder(20, 5, 40, arm, 2, 2, 16, 8, 32, pooling=pooling, hash_=hash_).double().eval()
    tokens = torch.randint(1, 20, (3, 24))
    tokens[0, 15:] = 0
    if arm == "ecoformer":
        fit_hashes(model, tokens)
    padded = F.pad(tokens, (0, 9))
    torch.testing.assert_close(model(padded), model(tokens))
    if arm != "performer":
        torch.testing.assert_close(model(tokens[:1, :15]), model(tokens)[:1])
    assert not torch.allclose(model(tokens[:1, :14]), model(tokens)[:1])


def test_padding_takes_no_part_in_the_fit() -> None:
    torch.manual_seed(0)
    hash_ = {"nbits": 8, "supports": 6, "fit": {"topk": 3, "iterations": 5, "supports": "batch"}}
    models = [Encoder(20, 5, 40, layers=1, heads=2, dim=16, inner=16, mlp=16, hash_=hash_).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    tokens = torch.randint(1, 20, (2, 24))
    tokens[0, 15:] = 0
    for model, given in zip(models, (tokens, F.pad(tokens, (0, 9))), strict=True):
        torch.manual_seed(3)
        fit_hashes(model.eval(), given)
    assert largest_difference(models[0].state_dict(), models[1].state_dict()) < 1e-9


def batch_of(data: SequenceData, split: str = "test") -> tuple[Tensor, Tensor]:
    data.eval_batch_size = 4
    return next(iter(data.alone(split)))


def test_generated_listops_are_the_generators_and_are_kept(tmp_path: Path) -> None:
    data = SequenceData("listops", str(tmp_path), "generator", samples=(6, 2, 3), **TREES)
    tokens, labels = batch_of(data)
    wanted = [e for _, e in zip(range(11), examples(0, SHORT), strict=False)][8:]
    for row, label, example in zip(tokens, labels, wanted, strict=True):
        assert row[row > 0].tolist() == encode(example.tokens) and int(label) == example.target
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tsv")}
    again, _ = batch_of(SequenceData("listops", str(tmp_path), "generator", samples=(6, 2, 3), **TREES))
    assert torch.equal(again, tokens) and len(kept) == 3
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tsv")}


def test_generated_pathfinder_images_are_the_generators_and_grow(tmp_path: Path) -> None:
    options: dict[str, Any] = dict(difficulty="relaxed", max_length=576)
    data = SequenceData("pathfinder", str(tmp_path), "generator", samples=(2, 1, 1), **options)
    tokens, labels = batch_of(data)
    images, wanted = pathfinder_images(4, 0, setting("relaxed"))
    assert torch.equal(tokens, torch.from_numpy(images[3:].reshape(1, -1).astype(np.int64)) + 1)
    assert labels.tolist() == wanted[3:].tolist()


def test_layouts_of_the_arena(tmp_path: Path) -> None:
    text = SequenceData("text", str(make_texts(tmp_path / "aclImdb").parent), max_length=1000)
    tokens, labels = batch_of(text)
    assert bytes((tokens[0][tokens[0] > 0] - 1).tolist()).startswith(b"bad ") and int(labels[0]) == 0
    assert len(text.split("train").labels) == len(text.split("test").labels) == len(text.split("val").labels) == 20
    free = SequenceData("text", str(make_texts(tmp_path / "mine", 40, ())), max_length=9)
    assert [len(free.split(split).labels) for split in ("train", "val", "test")] == [32, 4, 4]
    assert batch_of(free)[0].shape[1] <= 9
    pairs = SequenceData("retrieval", str(make_pairs(make_task(tmp_path / "pairs", "listops"))))
    tokens, labels = batch_of(pairs)
    assert tokens.shape[:2] == (4, 2) and labels.tolist() == [0, 1, 0, 1]
    assert bytes((tokens[1, 1][tokens[1, 1] > 0] - 1).tolist()) == b"some text"
    paths = SequenceData("pathfinder", str(make_pathfinder(tmp_path / "paths")), max_length=1024)
    assert [len(paths.split(split).labels) for split in ("train", "val", "test")] == [20, 2, 3]
    assert batch_of(paths)[0].shape == (3, 1024)


def test_grey_pixels_of_cifar(tmp_path: Path) -> None:
    """90 % of the training images train; grey is TensorFlow's weighted sum, cut off."""
    import pickle

    root = make_cifar(tmp_path)
    data = SequenceData("image", str(root), max_length=1024)
    assert [len(data.split(split).labels) for split in ("train", "val", "test")] == [45, 5, 10]
    tokens, labels = batch_of(data)
    content = pickle.loads((root / "cifar-10-batches-py" / "test_batch").read_bytes())
    red, green, blue = content[b"data"][1].astype(float).reshape(3, 1024)
    assert torch.equal(tokens[1], torch.from_numpy(0.2989 * red + 0.587 * green + 0.114 * blue).long() + 1)
    assert labels.tolist() == content[b"labels"][:4]


def broken(root: Path, kind: str) -> SequenceData:
    """Data that lack something."""
    if kind.startswith("listops"):
        file = make_listops(root) / "basic_val.tsv"
        text = file.read_text()
        changed = {
            "cut": text[:-3],
            "heading": text[7:],
            "words": text.replace("[MAX", "[MUX"),
            "label": text + "5\t12\n",
        }
        file.write_text(changed[kind.split()[1]])
        return SequenceData("listops", str(root))
    if kind.startswith("text"):
        make_texts(root)
        if kind == "text without pos":
            for path in (root / "test" / "pos").iterdir():
                path.unlink()
        else:
            (root / "train" / "neg" / "2_7.txt").write_text("")
        return SequenceData("text", str(root))
    if kind.startswith("retrieval"):
        file = make_pairs(root) / "new_aan_pairs.eval.tsv"
        if kind == "retrieval file":
            file.unlink()
        else:
            file.write_text(file.read_text()[:-4] if kind == "retrieval cut" else "a\tb\n")
        return SequenceData("retrieval", str(root))
    base = make_pathfinder(root) / "curv_contour_length_14"
    if kind == "pathfinder image":
        (base / "imgs" / "0" / "sample_2.png").unlink()
    else:
        (base / "metadata" / "0.npy").write_text("imgs/0 sample_0.png\n")
    return SequenceData("pathfinder", str(root), max_length=1024)


BROKEN = {
    "listops cut": "basic_val.tsv is empty or ends within a line; copy it again",
    "listops heading": "basic_val.tsv does not begin with the heading Source, Target",
    "listops words": "basic_val.tsv line",
    "listops label": "basic_val.tsv line 22 is not a tree and its value, a digit",
    "text without pos": "pos holds no texts",
    "text empty": "2_7.txt is empty; copy it again",
    "retrieval file": "holds 0 files *.eval.tsv; it should hold one",
    "retrieval cut": "new_aan_pairs.eval.tsv is empty or ends within a line",
    "retrieval form": "new_aan_pairs.eval.tsv line 1 is not label, id, id, text, text",
    "pathfinder image": "sample_2.png is missing, though 0.npy lists it; complete the copy",
    "pathfinder line": "0.npy line 1 is not folder, file, number, label",
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_data_are_one_line(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    with pytest.raises(UserError) as caught:
        broken(root, kind).setup()
    assert BROKEN[kind] in str(caught.value) and "\n" not in str(caught.value)


REFUSALS = {
    "--data.source files --data.root nowhere": "nowhere is missing; it should hold one *_train.tsv",
    "--data.task text --data.source generator": "task text has no generator",
    "--hash.nbits 0": "hash.nbits 0 is no length of a code",
    "--hash.supports 3": "hash.supports 3 are fewer than hash.topk 4",
    "--hash.supports_from first --data.max_length 8": "has 9 tokens and the hash 12 supports",
    "--hash.topk 80 --hash.supports 99": "has 65 tokens and hash.topk is 80",
    "--network.heads 3": "16 channels are no multiple of 3 heads",
    "--network.layers 0": "each is 1 at least",
    "--recipe.epochs 3": "give one of them",
    "--recipe.warmup_steps null": "give one of them",
    "--recipe.lr 0": "must be above 0",
    "--recipe.optimizer adamx": "unknown to timm",
    "--data.max_depth 0": "no ListOps tree has depth 0",
    "--data.batch_size 100": "64 training samples do not fill one batch of 100",
    "--ema.decay 0.9": "ema.decay 0.9 and recipe.refit_steps [6]: the mean of two fits of a hash is no hash",
    "--savings.compile true": "compile is not for EcoFormer's training",
    "--savings.patch_drop 0.5": "an encoder of sequences is no plain ViT",
    "--savings.channels_last true": "a sequence has no feature maps",
    "--savings.attention eager": "each layer chooses its own way",
    "--recipe.lr 1e30 --recipe.warmup_steps 0": "; the first layer without finite outputs is blocks.0.",
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSALS)
def test_refused_in_one_line(words: str, folder: Path, whole: Path) -> None:
    assert REFUSALS[words] in ecoformer.refused("train", "--config", "short.yaml", *words.split(), cwd=folder)


def test_an_unfitted_hash_is_refused_at_eval_or_fitted_on_request(folder: Path, whole: Path) -> None:
    made = options_of(lra, folder / "short.yaml")
    made.data.root = folder / "cache"
    lra.build_encoder(made.network, made.hash, made.data).save_pretrained(folder / "bare")
    words = ["eval", "--config", "short.yaml", "--ckpt", "bare", "--output", "fitted"]
    assert "1 hashes were never fitted (blocks.0.attn)" in ecoformer.refused(*words, cwd=folder)
    ecoformer.here(*words, "--fit-hash", cwd=folder)
    assert Metrics.read(folder / "fitted" / "metrics.json").row("ecoformer", "test/acc1").values
