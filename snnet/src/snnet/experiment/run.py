"""The embedded experiment: a stitched network of three small ViTs on handwritten digits, beside its baselines.

One call of `run_seed` does all arms of one seed. Every arm is a stage with a folder of its own: its training can be
resumed at any step, and its result is kept when it is done. `measure_seed` computes all numbers again from the weights.
"""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

from paperkit.data.digits import DigitsData
from paperkit.data.seeding import seed_generators
from paperkit.files.atomic import write_atomic
from paperkit.files.weights import load_strict, read_weights, save_weights
from paperkit.training.optim import OptimConfig
from paperkit.training.switches import apply
from paperkit.training.switches import callbacks as averaging
from paperkit.training.trainer import fit, make_trainer
from snnet.experiment.settings import DEFAULT, METHOD, ExperimentConfig, SeedResult
from snnet.method.counting import configuration_macs, parameters
from snnet.method.least_squares import initialise
from snnet.models.anchors import SNNet
from snnet.training.evaluation import evaluate
from snnet.training.joint import JointTraining, TrainingConfig

Advance = Callable[[int], None]
SAVE_EVERY = 200  # steps; a checkpoint of the networks of the digits takes milliseconds


def run_seed(seed: int, advance: Advance, run: str, config: ExperimentConfig) -> SeedResult:
    """Every arm of one seed, in the run folder `run`; what is there already is not done again."""
    Arms(seed, advance, Path(run), config).run()
    return measure_seed(seed, Path(run), config)


class Arms:
    """The arms of one seed, from top to bottom."""

    def __init__(self, seed: int, advance: Advance, run: Path, config: ExperimentConfig) -> None:
        self.seed, self.advance, self.config = seed, advance, config
        self.folder = run / f"seed-{seed}"

    def run(self) -> None:
        config = self.config
        network = build(config, self.seed)
        for anchor, name in enumerate(config.anchor_names):
            optim = self.optim(config.anchor_lrs[anchor])
            self.stage(f"anchor {name}", network, [anchor], optim, config.anchor_epochs)
        joint, tuning = self.optim(config.joint_lr), config.joint_epochs
        every = list(range(config.num_configurations))
        for arm in (METHOD, DEFAULT):
            self.stage(arm, self.initialised(network, arm), every, joint, tuning, log=True)
        for anchor, name in enumerate(config.anchor_names):
            self.stage(f"{name} tuned alone", copy.deepcopy(network), [anchor], joint, tuning)
        teacher = copy.deepcopy(network).set_stitch(2)
        self.stage("middle distilled", copy.deepcopy(network), [1], joint, tuning, teacher=teacher)
        for config_id in config.scratch_ids:
            self.from_scratch(config_id)

    def optim(self, lr: float) -> OptimConfig:
        return OptimConfig(lr=lr, weight_decay=self.config.weight_decay, fused=True)

    def initialised(self, network: SNNet, arm: str) -> SNNet:
        """A copy of the network with trained anchors, its stitching layers initialised as the arm says."""
        network = copy.deepcopy(network)
        if arm == METHOD:
            images = DigitsData(seed=self.seed, val_images=self.config.val_images).split.train[0]
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
            fits = initialise(network, [images[order[: self.config.init_images]]])
            write_json(self.folder / "least squares fit.json", [fit.residual for fit in fits.values()])
        return network

    def from_scratch(self, config_id: int) -> None:
        """A network of one stitch's shape, nothing pretrained; it takes the learning rate of its end anchor."""
        config = self.config
        network = build(config, self.seed + 1000 * config_id)
        optim = self.optim(config.anchor_lrs[network.configurations[config_id].anchors[-1]])
        self.stage(f"from scratch/{config_id}", network, [config_id], optim, config.scratch_epochs)

    def stage(
        self,
        name: str,
        network: SNNet,
        ids: Sequence[int],
        optim: OptimConfig,
        epochs: int,
        teacher: nn.Module | None = None,
        log: bool = False,
    ) -> None:
        """Train `network` in place and keep its weights, or load them if this stage is done already."""
        config, folder = self.config, self.folder / name
        data = DigitsData(config.batch_size, seed=self.seed, val_images=config.val_images)
        done = folder / "weights.safetensors"
        if done.exists():
            load_strict(network, read_weights(done, advice=None), str(done))
            remove_checkpoints(folder)  # of a run that was cut off between its weights and this
            self.advance(epochs * config.steps_per_epoch)
            return
        settings = TrainingConfig(
            stitches_per_step=config.stitches_per_step if len(ids) > 1 else 1,
            # The released soft loss divides by the number of classes as well; tau 3 makes up for it (3^2 of 10).
            distillation="soft" if teacher else "none",
            tau=3.0,
        )
        training = JointTraining(
            network, settings, optim, data.num_classes, self.seed, ids, teacher=teacher, savings=config.savings
        )
        callbacks: list[Callback] = [CountSteps(self.advance)]
        if len(ids) > 1:
            callbacks.append(MeasureCurve(self, folder / "curve.json"))
        fit(self.trainer(folder, epochs, callbacks, log), training, data, resume=True)
        save_weights(done, network.state_dict())
        remove_checkpoints(folder)

    def trainer(self, folder: Path, epochs: int, callbacks: Sequence[Callback], log: bool = False) -> pl.Trainer:
        """Lightning's Trainer on one CPU device, with `last.ckpt` in the folder of the stage.

        Args:
            log: write TensorBoard files into the folder.
        """
        loggers: dict[str, Any] = {} if log else {"logger": False}
        return make_trainer(
            folder,
            self.config.trainer,
            self.seed,
            resume_with=f"snnet train --resume {self.folder.parent}",
            save_every=SAVE_EVERY,
            averaging=averaging(self.config.ema),
            callbacks=callbacks,
            checkpoints="",
            devices=1,
            max_epochs=epochs,
            enable_progress_bar=False,
            log_every_n_steps=10,
            limit_val_batches=0,
            **loggers,
        )

    def measure(self, network: SNNet, ids: Sequence[int]) -> dict[int, float]:
        """Accuracy in percent per id, on the test images (or on the validation images that were asked for)."""
        return measure(network, self.config, ids)


class CountSteps(Callback):
    """Tells a progress bar of every step."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance = advance

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.advance(trainer.global_step * trainer.accumulate_grad_batches)  # what an interrupted run had done already

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        self.advance(1)


class MeasureCurve(Callback):
    """Accuracy of every configuration before the first step and after the measured epochs."""

    def __init__(self, arms: Arms, path: Path) -> None:
        self.arms, self.path = arms, path
        self.curve: dict[str, dict[int, float]] = json.loads(path.read_text()) if path.exists() else {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self._measure(0, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 in self.arms.config.measured_epochs:
            self._measure(trainer.current_epoch + 1, pl_module)

    def _measure(self, epoch: int, training: pl.LightningModule) -> None:
        network = training.network
        assert isinstance(network, SNNet)
        self.curve[str(epoch)] = self.arms.measure(network, range(network.num_configurations))
        write_json(self.path, self.curve)


def remove_checkpoints(folder: Path) -> None:
    """What a resume of this stage would need, once it is done."""
    for leftover in folder.glob("*.ckpt"):
        leftover.unlink()


def build(config: ExperimentConfig, seed: int) -> SNNet:
    """The three anchors and their stitching layers, initialised from the seed."""
    seed_generators(seed)
    network = SNNet(config.anchors(), num_classes=10, in_chans=1)
    apply(network, config.savings)
    return network


def measure(network: SNNet, config: ExperimentConfig, ids: Sequence[int]) -> dict[int, float]:
    """Accuracy in percent per id."""
    split = DigitsData(val_images=config.val_images).split
    images, labels = split.val or split.test
    return {i: found[0] for i, found in evaluate(network, [(images, labels)], ids, num_classes=10).items()}


def measure_seed(seed: int, run: Path, config: ExperimentConfig) -> SeedResult:
    """Every arm of a finished seed, evaluated again from its saved weights."""
    folder, network = run / f"seed-{seed}", build(config, seed)

    def accuracy(stage: str, ids: Sequence[int]) -> dict[int, float]:
        path = folder / stage / "weights.safetensors"
        load_strict(network, read_weights(path, advice=None), str(path))
        return measure(network, config, ids)

    every = range(config.num_configurations)
    arms = {f"anchor {name}": accuracy(f"anchor {name}", [a]) for a, name in enumerate(config.anchor_names)}
    arms |= {f"{name} tuned alone": accuracy(f"{name} tuned alone", [a]) for a, name in enumerate(config.anchor_names)}
    arms["middle distilled"] = accuracy("middle distilled", [1])
    arms["from scratch"] = {i: accuracy(f"from scratch/{i}", [i])[i] for i in config.scratch_ids}
    arms |= {arm: accuracy(arm, every) for arm in (DEFAULT, METHOD)}
    return SeedResult(
        seed=seed,
        arms=arms,
        curves={arm: read_curve(folder / arm / "curve.json") for arm in (METHOD, DEFAULT)},
        macs=configuration_macs(network, (1, 8, 8)),
        params=parameters(network),
        names=[c.describe(config.anchor_names) for c in network.configurations],
        cuts=[(c.anchors[0], *c.cuts[0]) if c.cuts else None for c in network.configurations],
        switch_keeps_weights=switching_keeps_weights(network),
    )


def read_curve(path: Path) -> dict[int, dict[int, float]]:
    """Epoch -> id -> accuracy."""
    return {
        int(epoch): {int(i): acc for i, acc in found.items()} for epoch, found in json.loads(path.read_text()).items()
    }


def switching_keeps_weights(network: SNNet) -> bool:
    """Whether choosing every configuration in turn leaves every parameter the same bytes in the same place."""
    before = [(p.data_ptr(), p.detach().clone()) for p in network.parameters()]
    for config_id in range(network.num_configurations):
        network.set_stitch(config_id)
    return all(
        p.data_ptr() == at and torch.equal(p, was) for p, (at, was) in zip(network.parameters(), before, strict=True)
    )


def write_json(path: Path, content: Any) -> None:
    write_atomic(path, json.dumps(content) + "\n")
