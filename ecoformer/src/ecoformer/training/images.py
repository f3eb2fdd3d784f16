"""Train a PVTv2 or Twins classifier on real images by the paper's two stages: full attention first, then EcoFormer.

Options: --network.* size, attention and the weights to start from, --hash.* the codes and their fit, --tuning.* what a
step does, --optim.* optimiser and schedule, --data.* the images, --savings.* and --ema.* the survey's savings,
--trainer.* Lightning's Trainer (devices, num_nodes, strategy, ...).

Weights of another attention are converted as they are read: SRA -> MSA -> EcoFormer. The hash is fitted on the first
batch, layer by layer within its forward pass; on several processes the first one fits and the others take its result.
"""

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from ecoformer.figures.energy import draw_energy
from ecoformer.method.attention import ask_for_fit, eco_layers, fit_hashes, start_epoch
from ecoformer.method.energy import Ledger, ledger
from ecoformer.models.architectures import DROP_PATH, architecture
from ecoformer.models.conversion import load_classifier, start_from
from ecoformer.models.pvt import PVTv2
from ecoformer.models.released import fit_released, from_timm, read_released
from ecoformer.models.twins import Twins
from ecoformer.training.hashing import HashConfig, check_switches, fit_ahead
from ecoformer.training.nan_layer import naming_its_layer
from paperkit.command.engines import device
from paperkit.data.images import ImageData
from paperkit.data.sizes import check_sizes
from paperkit.errors import UserError, one_line
from paperkit.files.hub import WEIGHTS
from paperkit.files.keys import first_few
from paperkit.files.runs import RunFolder, process_rank, weights_of
from paperkit.results.record import Costs, record, told
from paperkit.training.classification import accuracy_metrics, classification_loss, make_mixup, measured_accuracy
from paperkit.training.optim import (
    OptimConfig,
    build,
    check_clipping,
    clip_gradients,
    lightning_dict,
    step_schedule,
)
from paperkit.training.savings import EMA, Savings
from paperkit.training.savings import check as check_savings
from paperkit.training.switches import apply, callbacks, hardest, sharpened
from paperkit.training.trainer import (
    add_trainer_options,
    fit,
    last_evaluation,
    make_trainer,
    save_last_and_best,
    trainer_options,
)

TIMM_NAMES = {"alt_gvt_small": "twins_svt_small", "alt_gvt_base": "twins_svt_base", "alt_gvt_large": "twins_svt_large"}
RECIPE = {"optim.lr": 5e-5, "optim.lr_per_512": True, "optim.warmup_epochs": 5, "optim.warmup_lr": 1e-7,
          "optim.min_lr": 1e-6, "optim.step_per": "epoch", "optim.lag": 1}  # fmt: skip
"""The released schedule: a rate for 512 images, absolute bounds, one step an epoch with the index just finished."""
ENERGY_UNIT = "G pJ"
REFUSED = {
    "patch_drop": "the convolutions of a pyramid need the whole grid of tokens",
    "attention": "each layer chooses its own way; hash.backend sets that of the EcoFormer layers",
}


@dataclass
class NetworkConfig:
    """The classifier.

    Args:
        name: published size: pvt_v2_b0 ... pvt_v2_b5, alt_gvt_small, alt_gvt_base, alt_gvt_large.
        attention: of stages 1 to 3: `ecoformer`, `msa`, `sra`; of PVTv2 also `msa_share_qk` and `performer`, of Twins
            `gsa_to_msa`.
        options: constructor arguments in place of the size's (embed_dims, depths, ...).
        weights: file, run or folder to start from, with any of these attentions (`{name}` in it stands for the size);
            `timm` for its ImageNet weights.
        drop_path_rate: without it the released one of the family (0.1 PVTv2, 0.2 Twins), which rests while weights are
            fine-tuned in eval mode.
        trust_pickle: read weights whose file may run code.
    """

    name: str = "pvt_v2_b0"
    attention: str = "ecoformer"
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    drop_path_rate: float | None = None
    trust_pickle: bool = False


@dataclass
class TuningConfig:
    """What a step does; the defaults are the released ones.

    Args:
        mixup, cutmix: alpha of each; 0 is off. switch_prob: share of batches that get CutMix where both are on.
        smoothing: of the labels.
        eval_mode: keep the network in eval mode while it trains (no drop path). Without it: as released, so exactly
            where it starts from weights.
        refit_every: epochs between two fits of the hash (the authors' `k_interval`); without it one fit.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    switch_prob: float = 0.5
    smoothing: float = 0.1
    eval_mode: bool | None = None
    refit_every: int | None = None


def build_network(config: NetworkConfig, hash_: HashConfig, num_classes: int) -> PVTv2 | Twins:
    """The network with its starting weights.

    Raises:
        UserError: unknown options, or weights that do not fit.
    """
    drop = DROP_PATH[config.name[:3]] if config.drop_path_rate is None and config.name[:3] in DROP_PATH else 0.0
    own = hash_.options() if config.attention == "ecoformer" else {}
    changes = {"drop_path_rate": config.drop_path_rate or drop, "num_classes": num_classes, **own, **config.options}
    options = {**architecture(f"{config.name}_{config.attention}"), **changes}
    kind = PVTv2 if config.name.startswith("pvt") else Twins
    try:
        model = kind(**options)
    except TypeError as error:
        raise UserError(f"network.options: {error}") from None
    if config.weights:
        begin(model, config)
    return model


def begin(model: PVTv2 | Twins, config: NetworkConfig) -> None:
    """Gives a network the weights of `config.weights`, of whatever attention they are.

    Raises:
        UserError: a network of another size, or codes of another length.
    """
    assert config.weights is not None
    source = config.weights.replace("{name}", config.name)
    if source == "timm":
        name = TIMM_NAMES.get(config.name, config.name)
        try:
            state = from_timm(timm.create_model(name, pretrained=True).state_dict())
        except Exception as error:  # whatever the hub's client raises without a network
            reason = one_line(str(error))[:200]
            raise UserError(f"timm gave no weights of {name}: {reason}; name a file with network.weights") from error
    else:
        state = read_released(weight_file(source), config.trust_pickle)
    fit_released(state, model)  # refuses other bits; the hash itself is fitted anew, as released
    report = start_from(model, state)
    buffers = {name for name, _ in model.named_buffers()}
    missing = [key for key in report.missing if key not in buffers and not key.startswith("head.")]
    if missing or report.misshapen or report.unexpected:
        raise UserError(f"{source} is of no {config.name}: {report.message()}")
    kept = [key for key in report.missing if key not in buffers]
    if kept and process_rank() == 0:
        print(f"{source}: {first_few(kept)} begin(s) anew (another number of classes)")


def weight_file(source: str) -> Path:
    """The file in a run, in a folder of save_pretrained, or itself.

    Raises:
        UserError: it is not there.
    """
    place = Path(source)
    if place.is_dir():
        place = place / "model" / WEIGHTS if (place / "started").is_file() else place / WEIGHTS
    if not place.is_file():
        raise UserError(
            f"no weights at {place} to start from: finish the stage before (configs/imagenet/*_1_msa.yaml), or name "
            "others with network.weights"
        )
    return place


class ImageTraining(pl.LightningModule):
    """One step: mix, forward, soft-target cross entropy; the hash is fitted as an epoch's first batch passes."""

    def __init__(
        self,
        network: PVTv2 | Twins,
        tuning: TuningConfig,
        optim: OptimConfig,
        epochs: int,
        total_batch: int,
        steps_per_epoch: int,
        savings: Savings | None = None,
    ) -> None:
        super().__init__()
        self.network, self.tuning, self.optim, self.savings = network, tuning, optim, savings or Savings()
        self.lengths = dict(steps_per_epoch=steps_per_epoch, epochs=epochs, global_batch=total_batch)
        self.mix = make_mixup(tuning.mixup, tuning.cutmix, tuning.switch_prob, tuning.smoothing, network.num_classes)
        self.accuracy = accuracy_metrics(network.num_classes, "val/")
        self.last: Tensor | None = None  # images of the step under way, to say where a NaN arose

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, K)."""
        return self.network(images)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Mode of the network, and whether this batch fits the hash: never one in the middle of an epoch, so that a
        resumed epoch fits no second time."""
        self.network.train(not self.tuning.eval_mode)
        if self.savings.checkpointing:
            self.network.training = True  # by which the network itself recomputes its blocks; nothing in them changes
        if batch_idx == 0:
            start_epoch(self.network, self.current_epoch, self.tuning.refit_every)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        self.last = batch[0]
        images, labels = hardest(self.network, self.losses, *batch, self.savings)
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        fit_ahead(self.network, images, self.savings)
        loss = classification_loss(self.network(images), labels, self.tuning.smoothing)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Loss of each image (B,), by which `keep_hardest` ranks them."""
        return F.cross_entropy(self.network(images), labels, reduction="none", label_smoothing=self.tuning.smoothing)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        self.accuracy.update(self.network(batch[0]), batch[1])
        self.log_dict(self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer, schedule = build(self.network, self.optim, **self.lengths)
        return lightning_dict(sharpened(optimizer, self.savings), schedule)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """The Trainer's, or adaptive."""
        clip_gradients(self, optimizer, self.optim, gradient_clip_val, gradient_clip_algorithm)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """After every epoch, as the authors' `step(epoch)`."""
        step_schedule(scheduler, self.trainer)


def add_arguments(parser: Any) -> None:
    """Every option of a run."""
    parser.add_argument("--training_seed", type=int, default=0, help="initial weights, fit, drop path and mixing")
    parser.add_argument("--save_every", type=int, default=1000, help="optimiser steps between checkpoints")
    groups = {"network": NetworkConfig, "hash": HashConfig, "tuning": TuningConfig, "optim": OptimConfig,
              "data": ImageData, "savings": Savings, "ema": EMA}  # fmt: skip
    for name, kind in groups.items():
        parser.add_class_arguments(kind, name)
    parser.set_defaults(RECIPE)
    add_trainer_options(parser, defaults={"max_epochs": 30})


def add_evaluation_arguments(parser: Any) -> None:
    """What an evaluation does besides."""
    parser.add_argument(
        "--fit-hash", type=int, default=0, help="fit hashes that never were, on this many training images"
    )
    parser.add_argument("--autocast", type=Literal["float16", "bfloat16"] | None, default=None, help="as the authors")


def check(options: Any, run: RunFolder | None) -> None:
    """Refuse what this training cannot take, or not together, before any data are read; the model is built for it.

    Raises:
        UserError: the first of them.
    """
    data, tuning, network = options.data, options.tuning, options.network
    trainer = trainer_options(options.trainer)
    epochs = trainer["max_epochs"]
    mixes = bool(tuning.mixup or tuning.cutmix)
    if network.attention == "ecoformer":
        check_fit(options, epochs)
    if mixes and data.batch_size % 2:
        raise UserError(
            f"batch_size {data.batch_size} and mixup or CutMix: images are mixed in pairs, take an even one"
        )
    check_savings(options.savings, trainer, ema=options.ema, mixing=mixes, sizes=data.sizes.sizes, refused=REFUSED)
    check_clipping(options.optim, trainer.get("gradient_clip_val"))
    data.sizes.check_length(epochs)
    several = len(data.sizes.sizes) > 1
    with torch.device("cpu" if several else "meta"):
        model = build_network(replace(network, weights=None), options.hash, data.num_classes)
    if network.weights not in (None, "timm") and (run is None or not (run.path / "checkpoints" / "last.ckpt").exists()):
        weight_file(network.weights.replace("{name}", network.name))
    if network.attention == "ecoformer":
        for size in data.sizes.sizes:
            for layer in ledger(model, (3, size, size)).layers:
                if layer.kind == "ecoformer":
                    options.hash.check_tokens(layer.tokens, f"{layer.name} at {size} px")
    apply(model, replace(options.savings, compile=False))
    build(model, options.optim, 1, epochs, global_batch=1)
    if several:
        ask_for_fit(model)
        check_sizes(model, data.sizes.sizes)


def check_fit(options: Any, epochs: int) -> None:
    """Refuse a hash, or a schedule of its fits, that cannot be.

    Raises:
        UserError: naming the option.
    """
    options.hash.check()
    every = options.tuning.refit_every
    if every is not None and every < 1:
        raise UserError(f"tuning.refit_every {every} is no number of epochs; 1 at least, or none for one fit")
    several = every is not None and every < epochs
    check_switches(options.savings, options.ema, f"tuning.refit_every {every}" if several else "")


def train(run: RunFolder, options: Any, resuming: bool) -> ImageTraining:
    """Train to the end, or from the last checkpoint; `model/` (last) and `best/` are folders of save_pretrained."""
    start, data, tuning, network = time.monotonic(), options.data, options.tuning, options.network
    seed = options.training_seed
    if resuming and (run.path / "checkpoints" / "last.ckpt").exists():  # which holds all weights
        network = replace(network, weights=None)
    if tuning.eval_mode is None:
        tuning = replace(tuning, eval_mode=options.network.weights is not None)
    pl.seed_everything(seed, workers=False, verbose=False)
    model = build_network(network, options.hash, data.num_classes)
    apply(model, options.savings)
    given = trainer_options(options.trainer)
    trainer = make_trainer(
        run.path,
        given,
        seed,
        resume_with=f"ecoformer train --resume {run.path}",
        save_every=options.save_every,
        best="val/acc1",
        averaging=callbacks(options.ema),
    )
    data.trainer = trainer
    data.setup()
    accumulated = trainer.accumulate_grad_batches
    steps = max(1, -(-data.steps_per_epoch // accumulated))  # Lightning steps with what remains of an epoch as well
    total = data.batch_size * trainer.world_size * accumulated
    training = ImageTraining(model, tuning, options.optim, given["max_epochs"], total, steps, options.savings)
    with naming_its_layer(model, lambda: training.last):
        fit(trainer, training, data, resuming)
    if process_rank() == 0:
        finish(run, training, options, time.monotonic() - start)
    return training


def finish(run: RunFolder, training: ImageTraining, options: Any, seconds: float) -> None:
    """Write model/, best/ and metrics.json, with the energy of one image beside the accuracy."""
    network, data = training.network.cpu(), options.data
    save_last_and_best(network, run.path)
    found = last_accuracy(training)
    books = ledgers(network, data.input_size)
    extra = {"optim": asdict(training.optim), "tuning": asdict(training.tuning), "hash": asdict(options.hash),
             "lengths": training.lengths, "energy": {name: book.as_dict() for name, book in books.items()}}  # fmt: skip
    record(run.path, "ecoformer", "last", found, options.training_seed, seconds, energies(books), extra)
    print(f"{run.path}: model/ (last), best/ (highest validation accuracy); evaluate: ecoformer eval --ckpt {run.path}")


def last_accuracy(training: ImageTraining) -> dict[str, float]:
    """The last validation's shares, in %."""
    return {key: 100 * v for key, v in last_evaluation(training.trainer).items() if key.startswith("val/")}


def ledgers(model: PVTv2 | Twins, size: int) -> dict[str, Ledger]:
    """The energy model of a network, and of its twins with full and with reduced attention, for one image."""
    config = dict(getattr(model, "_hub_mixin_config", None) or {})
    forms = ({"msa": dict(attn_type="msa"), "sra": dict(attn_type="sra")} if isinstance(model, PVTv2)
             else {"msa": dict(block="StandardBlock"), "sra": dict(block="GroupBlock")})  # fmt: skip
    books = {"network": ledger(model, (3, size, size))}
    for name, change in forms.items():
        books[name] = ledger(lambda change=change: type(model)(**{**config, **change}), (3, size, size))  # type: ignore[misc]
    return books


def energies(books: dict[str, Ledger]) -> Costs:
    """Billions of pJ for an image: the network, the same with full attention, the unmodified one (reduced keys)."""
    names = {"network": "energy", "msa": "energy with full attention", "sra": "energy unmodified"}
    return [(names[key], book.total.energy_pj() / 1e9, ENERGY_UNIT) for key, book in books.items()]


def evaluate(run: RunFolder | None, options: Any) -> None:
    """Accuracy and energy of a run's last weights, or of --ckpt FILE_OR_FOLDER, on the test images of the options."""
    start, data = time.monotonic(), options.data
    model = load_classifier(weights_of(run, options.ckpt), options.trust_pickle)
    never = [name for name, layer in eco_layers(model) if not layer.ksh.is_fitted]
    if never and not options.fit_hash:
        raise UserError(
            f"{len(never)} hashes were never fitted ({first_few(never, 2)}): evaluate fitted weights, or let this "
            "command fit them with --fit-hash 32 (training images)"
        )
    if never:
        data.use_head(model.num_classes)
        fit_hashes(model, data.training_sample(options.fit_hash))
    data.use_head(model.num_classes)
    data.setup()
    on = device(options.device)
    found = measured_accuracy(model, data.test_dataloader(), model.num_classes, on, options.autocast)
    books = ledgers(model.cpu(), data.input_size)
    title = str(options.ckpt if run is None else run.path)
    told(title, found, energies(books))
    extra = {"energy": {name: book.as_dict() for name, book in books.items()}}
    seconds, folder = time.monotonic() - start, Path(options.output)
    record(folder, "ecoformer", "last", found, options.training_seed, seconds, energies(books), extra)


def add_figure_arguments(parser: Any) -> None:
    """What the figure is drawn for."""
    parser.add_argument("--size", type=int | None, default=None, help="side of an image in px (default: the run's)")


def figures(run: RunFolder | None, options: Any) -> list[Path]:
    """Energy of one image: the network, the same with full attention, and the unmodified one."""
    weights = weights_of(run, options.run)
    size = options.size or (run.read_config()["data"]["input_size"] if run is not None else 224)
    target = Path(options.output or (weights if run is None else run.path) / "figures")
    return [draw_energy(ledgers(load_classifier(weights), size), target / "energy.png")]
