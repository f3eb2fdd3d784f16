"""timm's optimisers and learning-rate schedules, with the traps between timm and Lightning closed.

* timm must see the model itself, not the LightningModule around it: only then does it find `no_weight_decay()` and
  the layers for `layer_decay`.
* A schedule is a function of the number of finished updates or epochs, and stores nothing: a resumed run computes the
  same values, and a run resumed with more epochs follows the longer curve.
* `lr_scale` of a parameter group multiplies every scheduled value, during warm-up and at the minimum as well.
"""

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import pytorch_lightning as pl
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils.agc import adaptive_clip_grad
from torch import nn
from torch.optim import Optimizer

from paperkit.errors import UserError

ParamGroups = Sequence[dict[str, Any]]


@dataclass
class OptimConfig:
    """Optimiser and schedule of a run.

    Args:
        name: any name of `timm.optim.list_optimizers()`. adamw is the usual one; sgd and lars for convolutions, lamb
            and lars for batches of thousands, lion and adafactorbv keep half the state or less, muon learns more per
            step and costs more, bnbadamw8bit keeps its state in 8 bits (needs bitsandbytes).
        lr: learning rate at the top of the schedule.
        lr_per_512: multiply `lr` by global batch / 512 (global batch = batch x processes x accumulation).
        bounds_per_512: multiply `warmup_lr` and `min_lr` by it as well (Swin does, DeiT does not).
        weight_decay: for weights with two or more dimensions; biases, 1-D tensors and the model's `no_weight_decay()`
            get 0.
        momentum: of optimisers that have one (sgd, lars, ...).
        betas, eps: of the Adam family; None takes the optimiser's own.
        layer_decay: lr factor from one layer to the layer beneath (BEiT); needs a timm model.
        schedule: cosine to `min_lr`, or constant after warm-up.
        warmup_epochs: epochs of linear rise from `warmup_lr` to `lr`.
        warmup_lr: first value of the warm-up.
        min_lr: last value of the cosine.
        warmup_prefix: begin the cosine after the warm-up (Swin); False counts the warm-up as its first part (DeiT),
            which makes the value fall a little where the warm-up ends.
        step_per: move along the schedule after every update (step) or every epoch.
        lag: 1 for recipes whose loop steps the schedule with the index of what has just finished: every value comes one
            epoch (or update) late, and the first two are equal (DeiT, Swin, LeViT). 0 for timm's own loop (index + 1).
        agc: adaptive gradient clipping with this factor (Brock et al., ICML 2021) instead of the Trainer's clipping.
        fused: the optimiser's single-kernel form, where torch has one (adam, adamw, sgd).
    """

    name: str = "adamw"
    lr: float = 1e-3
    lr_per_512: bool = False
    bounds_per_512: bool = False
    weight_decay: float = 0.05
    momentum: float = 0.9
    betas: tuple[float, float] | None = None
    eps: float | None = None
    layer_decay: float | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    warmup_lr: float = 1e-6
    min_lr: float = 0.0
    warmup_prefix: bool = False
    step_per: Literal["step", "epoch"] = "step"
    lag: int = 0
    agc: float | None = None
    fused: bool = False


class Schedule:
    """A learning-rate schedule in the form that Lightning's `lr_scheduler` entry takes.

    Attributes:
        optimizer: whose groups are set.
        interval: what `advance` counts, `"step"` or `"epoch"`.
    """

    def __init__(self, scheduler: Scheduler, lag: int = 0) -> None:
        self._scheduler, self._lag = scheduler, lag
        self.optimizer: Optimizer = scheduler.optimizer
        self.interval: Literal["step", "epoch"] = "epoch" if scheduler.t_in_epochs else "step"

    def advance(self, done: int) -> None:
        """Sets the groups for what follows after `done` finished updates (or epochs)."""
        position = max(done - self._lag, 0)
        if self.interval == "epoch":
            self._scheduler.step(position)
        else:
            self._scheduler.step_update(position)

    def state_dict(self) -> dict[str, Any]:
        """Empty: the position is the trainer's, the curve is the configuration's."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load; the current values lie in the optimiser's groups."""


def build(
    model_or_groups: nn.Module | ParamGroups,
    cfg: OptimConfig,
    steps_per_epoch: int,
    epochs: int,
    global_batch: int | None = None,
) -> tuple[Optimizer, Schedule]:
    """The optimiser and its schedule, set to the first value.

    Args:
        model_or_groups: the bare model, whose frozen parameters are left out; or groups `{"params": [...]}` with, if
            they differ, `weight_decay`, `lr_scale` (multiplies every value of the schedule) or `lr` (another top
            of the schedule, which still ends at `min_lr`; not scaled by `lr_per_512`).
        cfg: options.
        steps_per_epoch: optimiser updates, that is batches / accumulation.
        epochs: length of the run, warm-up included.
        global_batch: images of one update over all processes; needed for `lr_per_512`.

    Raises:
        UserError: for an unknown optimiser, numbers out of range, or options that do not go together.
    """
    _check(cfg, model_or_groups, steps_per_epoch, epochs, global_batch)
    scale = global_batch / 512 if cfg.lr_per_512 and global_batch else 1.0
    bounds = scale if cfg.bounds_per_512 else 1.0
    options: dict[str, Any] = {
        "betas": cfg.betas,
        "eps": cfg.eps,
        "fused": cfg.fused or None,
        "layer_decay": cfg.layer_decay,
    }
    if not isinstance(model_or_groups, nn.Module):
        # Copies, because torch writes into the dictionaries that it is given.
        model_or_groups = [dict(group) for group in model_or_groups]
    try:
        optimizer = create_optimizer_v2(
            model_or_groups,
            opt=cfg.name,
            lr=cfg.lr * scale,
            weight_decay=cfg.weight_decay,
            momentum=cfg.momentum,
            **{name: value for name, value in options.items() if value is not None},
        )
    except TypeError as error:
        if cfg.fused and "fused" in str(error):
            raise UserError(f"optimizer {cfg.name} has no fused form; leave fused off") from None
        raise
    if cfg.fused:
        # A fused step could undo the scaling of 16-mixed gradients itself, which Lightning takes for a reason to refuse
        # clipping, also where nothing is scaled. Without this mark the scaler does it before the gradients are clipped.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    # timm adds a prefixed warm-up to the epochs that it is given.
    curve_epochs = epochs - cfg.warmup_epochs if cfg.warmup_prefix else float(epochs)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine" if cfg.schedule == "cosine" else "step",
        decay_rate=1.0,  # steps that change nothing: constant
        num_epochs=curve_epochs,  # type: ignore[arg-type]  # fractions are fine, whatever timm's annotation says
        warmup_epochs=cfg.warmup_epochs,  # type: ignore[arg-type]
        warmup_lr=cfg.warmup_lr * bounds,
        min_lr=cfg.min_lr * bounds,
        warmup_prefix=cfg.warmup_prefix,
        step_on_epochs=cfg.step_per == "epoch",
        updates_per_epoch=steps_per_epoch,
    )
    return optimizer, Schedule(scheduler, cfg.lag)


def lightning_dict(optimizer: Optimizer, schedule: Schedule) -> dict[str, Any]:
    """What `configure_optimizers` returns; the optimiser may be one around that which the schedule was built for."""
    schedule.optimizer = optimizer  # Lightning wants to see the one that it is given
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": schedule.interval}}


def step_schedule(schedule: Schedule, trainer: pl.Trainer) -> None:
    """The body of `lr_scheduler_step`, which Lightning calls after each update or in an epoch's last batch."""
    schedule.advance(trainer.current_epoch + 1 if schedule.interval == "epoch" else trainer.global_step)


def clip_gradients(
    module: pl.LightningModule, optimizer: Optimizer, cfg: OptimConfig, value: float | None, algorithm: str | None
) -> None:
    """The body of `configure_gradient_clipping`: adaptive if the configuration asks for it, else the Trainer's."""
    if cfg.agc is None:
        module.clip_gradients(optimizer, gradient_clip_val=value, gradient_clip_algorithm=algorithm)
        return
    check_clipping(cfg, value)
    adaptive_clip_grad(_parameters(optimizer), clip_factor=cfg.agc)


def check_clipping(cfg: OptimConfig, value: float | None) -> None:
    """To be called when the options are read.

    Raises:
        UserError: if both kinds of clipping are asked for.
    """
    if cfg.agc is not None and value:
        raise UserError(f"agc {cfg.agc} and gradient_clip_val {value} both clip the gradients; set one of them")


def _parameters(optimizer: Optimizer) -> Iterable[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def check_name(name: str) -> None:
    """Raises a UserError for an optimiser that timm does not know, or knows only with another package."""
    known = [str(each) for each in list_optimizers()]
    if name.lower().removeprefix("lookahead_") not in known:
        close = get_close_matches(name, known, n=3) or ["adamw", "sgd", "lamb"]
        raise UserError(f"optimizer {name!r} is unknown to timm; did you mean {', '.join(close)}?")
    if name.lower().startswith("bnb") and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"optimizer {name} is bitsandbytes', which is not installed: pip install bitsandbytes")


def _check(
    cfg: OptimConfig,
    model_or_groups: nn.Module | ParamGroups,
    steps_per_epoch: int,
    epochs: int,
    global_batch: int | None,
) -> None:
    check_name(cfg.name)
    if cfg.lr <= 0 or min(cfg.weight_decay, cfg.warmup_lr, cfg.min_lr, cfg.warmup_epochs, cfg.lag) < 0:
        raise UserError(f"lr {cfg.lr} must be positive, and weight decay, warm-up, min_lr and lag must not be negative")
    if steps_per_epoch < 1 or epochs < 1:
        raise UserError(f"a schedule needs at least one step and one epoch, not {steps_per_epoch} and {epochs}")
    if cfg.lr_per_512 and not global_batch:
        raise UserError("lr_per_512 needs the global batch size, which this command does not know")
    if cfg.bounds_per_512 and not cfg.lr_per_512:
        raise UserError("bounds_per_512 scales with lr_per_512, which is off")
    if cfg.warmup_prefix and cfg.warmup_epochs >= epochs:
        raise UserError(f"a warm-up of {cfg.warmup_epochs:g} epochs leaves none of {epochs} epochs for the schedule")
    if cfg.layer_decay is not None and not isinstance(model_or_groups, nn.Module):
        raise UserError("layer_decay builds its own parameter groups; this model brings groups of its own")
    if isinstance(model_or_groups, pl.LightningModule):
        raise TypeError("give build() the model, not the LightningModule around it: timm would miss no_weight_decay()")
