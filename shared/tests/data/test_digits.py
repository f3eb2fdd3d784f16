"""The split, the two noises and the speed of the embedded data."""

import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from paperkit.data.digits import DigitsData, load_digits_split, seeded_noise
from paperkit.errors import UserError
from paperkit.training.classification import accuracy_metrics

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def test_split_holds_every_scan_once() -> None:
    clean = load_digits_split(val=200, noise=0.0, shift=0.0)
    assert clean.val is not None
    parts = [clean.train, clean.val, clean.test]
    assert [len(labels) for _, labels in parts] == [997, 200, 600]
    ours = torch.cat([images for images, _ in parts]).flatten(1) * 16
    scans = torch.from_numpy(load_digits().data).float()
    assert sorted(ours.tolist()) == sorted(scans.tolist())


def test_classes_are_shared_out_equally() -> None:
    split = load_digits_split(val=200)
    assert split.val is not None
    for _, labels in (split.train, split.val, split.test):
        share = labels.bincount(minlength=10) / len(labels)
        assert (share - 0.1).abs().max() < 0.01


def test_validation_images_come_from_the_training_part() -> None:
    """Without validation the same 1197 train, and the test images never change."""
    whole, parts = load_digits_split(), load_digits_split(val=200)
    assert whole.val is None
    assert parts.val is not None
    together = torch.cat([parts.train[0], parts.val[0]])
    assert sorted(together.flatten(1).tolist()) == sorted(whole.train[0].flatten(1).tolist())
    assert torch.equal(whole.test[0], parts.test[0])


def test_fixed_noise_is_drawn_once_with_the_stated_deviation() -> None:
    clean, noisy = load_digits_split(noise=0.0), load_digits_split()
    added = noisy.train[0] - clean.train[0]
    assert abs(added.std().item() - 0.15) < 0.002
    assert torch.equal(load_digits_split().train[0], noisy.train[0])
    assert not torch.equal(load_digits_split(seed=1).train[0][:9], noisy.train[0][:9])
    shifted = load_digits_split(noise=0.0, shift=0.0).train[0] - clean.train[0]
    torch.testing.assert_close(shifted, torch.full_like(shifted, 0.3))


def batches(seed: int = 0, epoch: int = 0, fresh_noise: float = 0.1, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    data = DigitsData(seed=seed, fresh_noise=fresh_noise, size=size)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return list(loader)


def test_training_order_and_fresh_noise_are_functions_of_seed_and_epoch() -> None:
    first = batches()
    assert len(first) == 37 == DigitsData().steps_per_epoch
    assert first[0][0].shape == (32, 1, 8, 8)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, batches(), strict=True))
    assert not torch.equal(first[0][1], batches(epoch=1)[0][1])
    assert not torch.equal(first[0][1], batches(seed=1)[0][1])


def test_fresh_noise_belongs_to_the_image_and_changes_with_the_epoch() -> None:
    """What is added to image i does not depend on the batch it lies in: row i of the epoch's noise."""
    images = load_digits_split().train[0]
    for epoch in (0, 3):
        noise = seeded_noise(images.shape, 0.1, 0, epoch)
        plain, noisy = batches(epoch=epoch, fresh_noise=0.0), batches(epoch=epoch)
        sampler = DigitsData().train_dataloader().sampler
        sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for draws, (clean, _), (mixed, _) in zip(sampler, plain, noisy, strict=True):
            indices = [draw.index for draw in draws]
            assert torch.equal(clean, images[indices])
            assert torch.equal(mixed, images[indices] + noise[indices])
    assert abs(noise.std().item() - 0.1) < 0.002
    assert not torch.equal(seeded_noise((4,), 1.0, 0, 0), seeded_noise((4,), 1.0, 0, 1))


def test_larger_images_show_the_same_scans() -> None:
    """Averaging 2 x 2 pixels of the enlarged image comes back near the scan; training and evaluation agree."""
    data = DigitsData(size=16, val_images=200)
    small = DigitsData(val_images=200)
    for loader in ("val_dataloader", "test_dataloader"):
        (large, labels), (scans, same) = (next(iter(getattr(d, loader)())) for d in (data, small))
        assert large.shape[1:] == (1, 16, 16)
        assert torch.equal(labels, same)
        assert (torch.nn.functional.avg_pool2d(large, 2) - scans).abs().mean() < 0.1
    assert batches(size=16)[0][0].shape == (32, 1, 16, 16)
    assert torch.equal(load_digits_split(val=200, size=16).test[0], next(iter(data.test_dataloader()))[0])


def test_evaluation_loaders_see_all_images_once() -> None:
    data = DigitsData(val_images=200, eval_batch_size=64)
    assert data.split.val is not None
    for loader, (images, labels) in (
        (data.val_dataloader(), data.split.val),
        (data.test_dataloader(), data.split.test),
    ):
        seen = list(loader)  # type: ignore[arg-type]
        assert torch.equal(torch.cat([x for x, _ in seen]), images)
        assert torch.equal(torch.cat([y for _, y in seen]), labels)
    assert DigitsData().val_dataloader() == []


def test_impossible_validation_size_is_refused() -> None:
    for val in (-1, 5, 1190):
        with pytest.raises(UserError, match=f"{val} validation images: give 0, or 10 to 1187"):
            load_digits_split(val=val)


class Learner(pl.LightningModule):
    """Logistic regression: enough to see that images and labels belong together."""

    def __init__(self, optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW) -> None:
        super().__init__()
        self.net, self.optimizer = torch.nn.Linear(64, 10), optimizer
        self.accuracy = accuracy_metrics(10)["acc1"]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self.net(batch[0].flatten(1)), batch[1])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.accuracy(self.net(batch[0].flatten(1)), batch[1])
        self.log("hits", self.accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), lr=1e-2 if self.optimizer is torch.optim.AdamW else 0.2)


def test_trainer_learns_from_it() -> None:
    torch.manual_seed(0)
    trainer, model = pl.Trainer(max_epochs=3, accelerator="cpu", **QUIET), Learner()  # type: ignore[arg-type]
    trainer.fit(model, datamodule=DigitsData())
    trainer.test(model, datamodule=DigitsData(), verbose=False)
    assert trainer.callback_metrics["hits"] > 0.85


def fit_digits(folder: Path, processes: int) -> None:
    """One epoch of plain gradient descent on 32 images a step; rank 0 writes the weights and the share of test hits."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        **QUIET,  # type: ignore[arg-type]
    )
    model, data = Learner(torch.optim.SGD), DigitsData(batch_size=32 // processes, eval_batch_size=64)
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        hits = trainer.callback_metrics["hits"].item()
        torch.save({"hits": hits, **model.net.state_dict()}, folder / f"{processes}.pt")


def test_two_processes_train_and_count_like_one(tmp_path: Path) -> None:
    """The samplers stay in place under DDP, share each batch out, and show each of the 600 test images once."""
    environment = {name: value for name, value in os.environ.items() if name != "MASTER_PORT"}
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    threads = torch.get_num_threads()
    fit_digits(tmp_path, 1)
    torch.set_num_threads(threads)
    one, two = (torch.load(tmp_path / f"{processes}.pt") for processes in (1, 2))
    assert one["hits"] == two["hits"] > 0.5
    torch.testing.assert_close(two["weight"], one["weight"], rtol=0, atol=1e-6)
    torch.testing.assert_close(two["bias"], one["bias"], rtol=0, atol=1e-6)


def test_a_batch_takes_far_less_than_a_step() -> None:
    """0.05 ms on an idle core of the machine this was written on; the limit leaves room for a loaded one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loader = DigitsData().train_dataloader()
    marks = [time.perf_counter() for _ in range(5) for _ in loader]
    torch.set_num_threads(threads)
    gaps = sorted(later - earlier for earlier, later in pairwise(marks))
    assert gaps[len(gaps) // 2] < 0.5e-3


if __name__ == "__main__":
    fit_digits(Path(sys.argv[1]), 2)
