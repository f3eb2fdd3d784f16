"""The embedded experiment for one seed, from top to bottom: detectors under one budget, then measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paperkit.files.weights import load_strict, read_weights
from paperkit.training.stages import train_stage
from stpt.experiment.clips import FRAMES, make_clips, present
from stpt.experiment.measuring import change_by_cue, precisions, refinement
from stpt.experiment.network import new_network
from stpt.experiment.settings import REFINED, ExperimentConfig, SeedResult
from stpt.method.losses import DetectionLoss
from stpt.method.windows import boundary_masks
from stpt.models.stpt import STPT

Advance = Callable[[int], None]
LOSS = DetectionLoss(frames=FRAMES, weights={"loss_c": 2.0, "loss_l": 1.0, "loss_prop_c": 2.0, "loss_prop_l": 1.0})


def run_seed(seed: int, advance: Advance, run: str, config: ExperimentConfig) -> SeedResult:
    """Train every arm of one seed in the run folder `run` on the same clips in the same order, then measure."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return make_clips("train", config.batch_size, seed, step)

    for arm in config.arms:
        network = new_network(arm, seed, config)
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=0.01, fused=True)
        optimizer.register_step_pre_hook(clip_gradients)
        folder = arm_folder(Path(run), seed, arm)
        train_stage(network, folder, optimizer, config.rate, batch, config.steps, advance=advance, loss_of=clip_loss)
    return measure_seed(seed, Path(run), config)


def clip_gradients(optimizer: torch.optim.Optimizer, *of_step: Any) -> None:
    """To a norm of 1; a hook before each step."""
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)


def clip_loss(outputs: dict[str, Tensor], actions: Tensor) -> Tensor:
    """Focal loss of the classes, twice, and GIoU loss of the segments; in the refined arm AFSD's others as well.

    Args:
        outputs: of the network.
        actions: (B, K, 3) as in `Clips`.
    """
    truths = [present(each) for each in actions]
    masks = boundaries(truths) if "start" in outputs else ()
    return torch.stack([*LOSS(outputs, truths, *masks).values()]).sum()


def boundaries(truths: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, T) twice, 1 in the frames around starts and ends."""
    frames = torch.tensor([FRAMES, FRAMES, 1])
    masks = [boundary_masks((truth * frames).double().numpy(), FRAMES) for truth in truths]
    starts, ends = (torch.from_numpy(np.stack(side)).float() for side in zip(*masks, strict=True))
    return starts, ends


def measure_seed(seed: int, run: Path, config: ExperimentConfig) -> SeedResult:
    """Every number of a finished seed, from its weights."""
    clips = make_clips(config.split, config.test_clips)
    precision: dict[str, list[float]] = {}
    change: dict[str, float] = {}
    for arm in config.arms:
        network = trained(arm, seed, run, config)
        if arm == REFINED:
            precision |= refinement(network, clips)
        else:
            precision[arm] = precisions(network, clips)
            change[arm] = change_by_cue(network, clips)
    return SeedResult(seed, precision, change)


def arm_folder(run: Path, seed: int, arm: str) -> Path:
    """Where the stage of an arm is kept."""
    return run / f"seed-{seed}" / arm.replace(", ", "-")


def trained(arm: str, seed: int, run: Path, config: ExperimentConfig) -> STPT:
    """An arm's network with its trained weights, in eval mode."""
    network, path = new_network(arm, seed, config), arm_folder(run, seed, arm) / "weights.safetensors"
    load_strict(network, read_weights(path), str(path))
    return network.eval()
