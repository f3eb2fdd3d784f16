"""The embedded experiment: with the same number of trained parameters, do places chosen by gradients beat others?

A small ViT is pre-trained on half of the digits; then every arm tunes a copy of it on four tasks, from the same head
and on the same batches. Everything random is a function of (seed, task), an arm's result is kept when it is done, and
the pre-training saves itself, so a killed run continues to the same bits.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from paperkit.data.seeding import seed_of
from paperkit.errors import UserError
from paperkit.files.weights import (
    load_strict,
    read_weights,
    save_weights,
)
from paperkit.training.stages import train_steps
from spt.experiment.arms import Arm, Setting, build_arm
from spt.experiment.digit_tasks import CLASSES, Task, make_task, shifted, source_digits, unseen_digits
from spt.experiment.settings import ExperimentConfig, SeedResult
from spt.figures.statistics import concentration, jaccard, share_by_place, staircase, top_marks
from spt.method.allocation import Rule
from spt.method.sensitivity import measure_sensitivities, reset_head
from spt.models.selection_file import flags

Advance = Callable[[int], None]


def small_vit(classes: int) -> VisionTransformer:
    """A ViT of patch 2 (16 tokens and a class token), width 32, depth 4."""
    return VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, embed_dim=32, depth=4, num_heads=4, num_classes=classes
    )


def warmup_cosine(step: int, *, steps: int, lr: float) -> float:
    """Linear warm-up over a tenth of the steps, then cosine to zero."""
    warm = max(1, steps // 10)
    return (
        lr * (step + 1) / warm
        if step < warm
        else lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    )


# --- backbone ----------------------------------------------------------------------------------------------------


def pretrain(seed: int, advance: Advance, run: str, config: ExperimentConfig) -> float:
    """Pre-trains the backbone on its half of the digits; returns its accuracy (%) on the other half."""
    done, state_file = Path(run) / "backbone.safetensors", Path(run) / "pretraining.ckpt"
    torch.manual_seed(seed_of(seed, 1))
    model = small_vit(10)
    reset_head(model)
    if done.is_file():
        load_strict(model, read_weights(done), str(done))
        advance(config.pretrain_steps)
        return accuracy(model, *unseen_digits(seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.pretrain_lr, weight_decay=0.05)
    images, labels = source_digits(seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(seed_of(seed, 2, step))
        chosen = torch.randperm(len(labels), generator=draw)[:64]
        return shifted(images[chosen], draw), labels[chosen]

    train_steps(
        model,
        optimizer,
        partial(warmup_cosine, steps=config.pretrain_steps, lr=config.pretrain_lr),
        batch,
        config.pretrain_steps,
        name="pre-training",
        last=state_file,
        advance=advance,
        remedy="start a new run with a lower --pretrain_lr",
    )
    save_weights(done, model.state_dict())
    return accuracy(model, *unseen_digits(seed))


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent of images classified correctly."""
    model.eval()
    return 100 * float((model(images).argmax(1) == labels).float().mean())


# --- one seed ----------------------------------------------------------------------------------------------------


def run_seed(seed: int, advance: Advance, run: str, config: ExperimentConfig) -> SeedResult:
    """Every arm of every task for one seed, in `run/seed-N`; what is there already is not done again."""
    for task in config.tasks:
        data, setting = prepare(task, seed, Path(run), config)
        for name in config.arm_list:
            file = arm_file(Path(run), seed, task, name)
            if file.is_file():
                advance(config.steps)
                continue
            arm = build_arm(name, setting)
            losses = tune(arm, data, name, task, seed, config, advance)
            file.parent.mkdir(parents=True, exist_ok=True)
            save_weights(file, trained_state(arm.model), {"losses": json.dumps(losses), "spent": str(arm.spent)})
    return measure_seed(seed, Path(run), config)


def arm_file(run: Path, seed: int, task: str, arm: str) -> Path:
    """`run/seed-0/flip/largest-magnitude.safetensors`."""
    word = "".join(c if c.isalnum() else "-" for c in arm).replace("--", "-").strip("-")
    return run / f"seed-{seed}" / task / f"{word}.safetensors"


def prepare(task: str, seed: int, run: Path, config: ExperimentConfig) -> tuple[Task, Setting]:
    """Data of the task, and what all arms share: backbone with a fresh head, sensitivities, budget."""
    data = make_task(task, seed, config.backbone_seed, config.train_images, config.val_images)
    backbone = small_vit(CLASSES[task])
    state = read_weights(run / "backbone.safetensors")
    torch.manual_seed(seed_of(seed, 4))
    reset_head(backbone)
    head = {name: value for name, value in backbone.state_dict().items() if "head" in name}
    load_strict(backbone, {**state, **head}, str(run / "backbone.safetensors"))
    batches = in_batches(data.train, 32)
    one = measure_sensitivities(backbone, batches, seed=seed).values
    several = "sensitive entries, 4 heads" in config.arm_list
    four = measure_sensitivities(backbone, batches, seed=seed, heads=4).values if several else {}
    return data, Setting(backbone, one, four, config.budget, config.steps, seed)


def in_batches(part: tuple[Tensor, Tensor], size: int) -> list[tuple[Tensor, Tensor]]:
    """Whole data set in fixed order."""
    return list(zip(part[0].split(size), part[1].split(size), strict=True))


def tune(
    arm: Arm, data: Task, name: str, task: str, seed: int, config: ExperimentConfig, advance: Advance
) -> list[float]:
    """Tunes an arm; returns the loss of every step."""
    lr = config.full_lr if name == "full fine-tuning" else config.lr
    trained = [p for p in arm.model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 1e-4},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    images, labels = data.train
    torch.manual_seed(seed_of(seed, 6))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(seed_of(seed, 8, step))
        chosen = torch.randperm(len(labels), generator=draw)[: config.batch_size]
        return images[chosen], labels[chosen]

    return train_steps(
        arm.model,
        optimizer,
        partial(warmup_cosine, steps=config.steps, lr=lr),
        batch,
        config.steps,
        name=f"{name} on {task}, seed {seed}",
        advance=advance,
        after_step=arm.after_step,
        remedy=f"start a new run with a lower --{'full_lr' if name == 'full fine-tuning' else 'lr'}",
    )


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The trained tensors, and the buffers that tuning moved (AdaLoRA's rank masks live in its trained tensors)."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def put_state(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Writes trained tensors back.

    Raises:
        UserError: when the file is of another arm or setting.
    """
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    odd = sorted(set(own) ^ set(state)) or [name for name in own if own[name].shape != state[name].shape]
    if odd:
        raise UserError(f"{source} does not fit this arm: it differs in {', '.join(odd[:3])}")
    for name, value in state.items():
        own[name].copy_(value)


# --- results from saved weights ----------------------------------------------------------------------------------


def measure_seed(seed: int, run: Path, config: ExperimentConfig) -> SeedResult:
    """All numbers of one seed, computed again from the saved weights."""
    result = SeedResult(seed)
    marks: dict[str, Tensor] = {}
    for task in config.tasks:
        data, setting = prepare(task, seed, run, config)
        result.accuracy[task], result.spent[task] = {}, {}
        for name in config.arm_list:
            file = arm_file(run, seed, task, name)
            if not file.is_file():
                raise UserError(f"{file} is missing; continue the run with `spt train --resume {run}`")
            arm = build_arm(name, setting)
            put_state(arm.model, read_weights(file), str(file))
            result.accuracy[task][name], result.spent[task][name] = accuracy(arm.model, *data.test), arm.spent
            if name == "SPT-LoRA" and arm.selection is not None:
                result.selections[task] = flags(arm.selection, rows=1)
        marks[task] = top_marks(setting.values, config.budget)
        result.maps[task] = share_by_place(setting.values, config.budget)
        if not result.stairs:
            result.stairs = staircase(setting.values, Rule("lora", 1, fixed=0), 4 * config.budget)
            result.concentration = concentration(setting.values)
        # A side result of the allocation, and dear: heads are measured many times.
        if seed == config.first_seed and "SPT-LoRA" in config.arm_list:
            result.overlap.update(overlaps_of_task(task, setting, data, config))
    names = list(marks)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            result.overlap[f"{first} and {second}"] = jaccard(marks[first], marks[second])
    return result


def evaluate_seed(seed: int, advance: Advance, run: str, config: ExperimentConfig) -> SeedResult:
    """`measure_seed` in the form that seeds are run side by side."""
    result = measure_seed(seed, Path(run), config)
    advance(1)
    return result


def overlaps_of_task(task: str, setting: Setting, data: Task, config: ExperimentConfig) -> dict[str, float]:
    """How far a selection depends on the images and on the random head."""
    images, labels = data.train
    half = len(labels) // 2
    halves = [
        top_marks(
            measure_sensitivities(setting.backbone, in_batches(part, 32), seed=setting.seed).values, config.budget
        )
        for part in ((images[:half], labels[:half]), (images[half:], labels[half:]))
    ]
    found = {f"{task}: two halves of the images": jaccard(*halves)}
    model = setting.backbone
    head = {name: p.detach().clone() for name, p in model.named_parameters() if "head" in name}
    for heads in (1, 4, 16):
        pair = []
        for draw in (0, 1):
            torch.manual_seed(seed_of(setting.seed, 9, draw))
            reset_head(model)
            values = measure_sensitivities(
                model, in_batches(data.train, 32), heads=heads, seed=1000 * (draw + 1)
            ).values
            pair.append(top_marks(values, config.budget))
        found[f"{task}: two draws of {heads} head{'s' if heads > 1 else ''}"] = jaccard(*pair)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in head:
                parameter.copy_(head[name])
    return found
