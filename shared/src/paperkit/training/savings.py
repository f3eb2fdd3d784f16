"""The survey's savings as switches: each a few lines over a maintained library, and what refuses what.

"A Survey on Efficient Training of Transformers" (Zhuang et al., IJCAI 2023) lists what saves time and memory in
training; paperkit's README has its rows as a table, with what each saves here. A paper offers
`Savings` and `EMA` as options, calls `check` when they are read, before any data are, and the
functions of `paperkit.training.switches` when it builds model, optimiser and trainer.

Precision, accumulated batches, gradient clipping, DDP and FSDP are the Trainer's own options; the optimiser is
`paperkit.training.optim.OptimConfig`'s, smaller images are the data's `size_schedule`, pruned data
their `subset`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from paperkit.errors import UserError
from paperkit.results.environment import cpu


@dataclass(frozen=True)
class Savings:
    """Switches of a training step. All are off by default, and all but `compile` keep a resumed run bit-identical.

    Args:
        checkpointing: compute the blocks' activations again in the backward pass: much less memory, about a quarter
            more time.
        attention: `fused` is one kernel that keeps no attention matrix; `eager` writes the matrix out.
        channels_last: store images and feature maps with the channels innermost; for convolutions on a GPU.
        compile: torch.compile the model in place; minutes at the start, and again for each new size of input. A resumed
            run is compiled anew, and another build of the compiler may round otherwise.
        patch_drop: share of a plain ViT's image tokens that a training step leaves out (PatchDropout).
        sam_rho: sharpness-aware minimisation, usually 0.05; doubles the time of a step, 0 is off. The loss that is
            logged is the second pass's, and BatchNorm's statistics see both passes.
        keep_hardest: share of the batch with the highest losses that is trained on; the rest costs a forward pass. Each
            process, and each accumulated batch, chooses among its own images.
    """

    checkpointing: bool = False
    attention: Literal["fused", "eager"] = "fused"
    channels_last: bool = False
    compile: bool = False
    patch_drop: float = 0.0
    sam_rho: float = 0.0
    keep_hardest: float = 1.0


@dataclass(frozen=True)
class EMA:
    """Exponential moving average of the weights: it is what is validated and what a finished run holds.

    A resumed run goes on with the same average, bit by bit.

    Args:
        decay: share of the average that a step keeps; None is off. It must fit the run: 0.98 to 0.99 for hundreds of
            steps, 0.9999 for hundreds of thousands.
        start_step: optimiser steps before the averaging begins; until then the average is the trained weights.
    """

    decay: float | None = None
    start_step: int = 0


def check(
    savings: Savings,
    trainer: Mapping[str, Any],
    *,
    ema: EMA | None = None,
    mixing: bool = False,
    distillation: bool = False,
    sizes: Sequence[int] = (),
    refused: Mapping[str, str] | None = None,
) -> None:
    """Ends a run before it begins if its switches cannot work, or cannot work together.

    Args:
        trainer: the Trainer's options (precision, accelerator, strategy, accumulate_grad_batches).
        mixing: mixup or CutMix is on, so that an image has no loss against one label.
        distillation: the loss needs a teacher's answer for each image.
        sizes: image sizes of the run's schedule.
        refused: what this paper cannot take: switch -> the reason, in words.

    Raises:
        UserError: one line that names both sides.
    """
    ema = ema or EMA()
    _check_ranges(savings, ema)
    precision, strategy = str(trainer.get("precision") or "32-true"), str(trainer.get("strategy") or "auto")
    sam, hardest = savings.sam_rho > 0, savings.keep_hardest < 1
    fsdp, half = "fsdp" in strategy.lower(), precision in ("16-mixed", "16")
    on_cpu = trainer.get("accelerator") == "cpu" or not _accelerator()
    pairs = [
        (
            sam and (trainer.get("accumulate_grad_batches") or 1) > 1,
            f"sam_rho {savings.sam_rho} and accumulate_grad_batches {trainer.get('accumulate_grad_batches')}: the "
            "second gradient would see the last of the accumulated batches only",
        ),
        (sam and half, f"sam_rho {savings.sam_rho} and precision {precision}: the loss scaler passes no closure on"),
        (sam and hardest, f"sam_rho {savings.sam_rho} and keep_hardest {savings.keep_hardest}: two passes would choose "
                          "different images"),
        (sam and fsdp, f"sam_rho {savings.sam_rho} and strategy {strategy}: a process sees the norm of its shard only"),
        (half and on_cpu, f"precision {precision} and a CPU: Lightning would take bf16-mixed in silence; ask for that"),
        (fsdp and on_cpu, f"strategy {strategy} and a CPU: fully sharded training needs GPUs; take ddp"),
        (fsdp and ema.decay is not None, f"ema.decay {ema.decay} and strategy {strategy}: the average would need whole "
                                         "weights"),
        (hardest and mixing, f"keep_hardest {savings.keep_hardest} and mixup or CutMix: a mixed image has no label of "
                             "its own"),
        (hardest and distillation, f"keep_hardest {savings.keep_hardest} and distillation: images are ranked by their "
                                   "labels' loss alone"),
    ]  # fmt: skip
    for cannot, line in pairs:
        if cannot:
            raise UserError(line)
    given = Savings(), savings
    for name, reason in (refused or {}).items():
        if getattr(given[0], name) != getattr(given[1], name):
            raise UserError(f"{name} {getattr(savings, name)} is not for this method: {reason}")
    if savings.compile and len(set(sizes)) > 1:
        _note(f"compile and size_schedule: one compilation for each of {sorted(set(sizes))} px")
    if savings.compile and on_cpu:
        _note("compile on a CPU takes minutes before the first step and gains little; it is for long runs")
    if on_cpu and "bf16" in precision and not {"avx512_bf16", "amx_bf16", "bf16"} & set(cpu()["flags"]):
        _note(f"precision {precision}: this processor has no bfloat16 instructions; expect no gain")


def _accelerator() -> bool:
    import torch  # late: options have to be had without it

    return torch.accelerator.is_available()


def _note(line: str) -> None:
    """Not by `warnings`, which a command silences because of its libraries."""
    print(f"note: {line}", file=sys.stderr, flush=True)


def _check_ranges(savings: Savings, ema: EMA) -> None:
    if not 0 <= savings.patch_drop < 1:
        raise UserError(f"patch_drop {savings.patch_drop} must be at least 0 and below 1")
    if savings.sam_rho < 0:
        raise UserError(f"sam_rho {savings.sam_rho} must not be negative")
    if not 0 < savings.keep_hardest <= 1:
        raise UserError(f"keep_hardest {savings.keep_hardest} must be above 0 and at most 1")
    if ema.decay is not None and not 0 <= ema.decay < 1:
        raise UserError(f"ema.decay {ema.decay} must be at least 0 and below 1")
    if ema.start_step < 0 or (ema.start_step and ema.decay is None):
        raise UserError(f"ema.start_step {ema.start_step} must not be negative, and needs an ema.decay")
