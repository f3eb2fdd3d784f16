"""The embedded experiment for one seed, from top to bottom: four decoders under one budget, then measured."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from faseg.experiment.costs import omegas
from faseg.experiment.looking import consistency
from faseg.experiment.losses import scene_loss
from faseg.experiment.measuring import output_ious
from faseg.experiment.network import SceneNetwork, new_network
from faseg.experiment.scenes import Scenes, make_scenes
from faseg.experiment.settings import ARMS, FASEG, ExperimentConfig, SeedResult
from paperkit.data.seeding import seed_of
from paperkit.files.weights import load_strict, read_weights
from paperkit.training.stages import train_stage

Advance = Callable[[int], None]
BATCH = 2  # stream of random numbers


def run_seed(seed: int, advance: Advance, run: str, config: ExperimentConfig) -> SeedResult:
    """Train every arm of one seed in the run folder `run` on the same scenes in the same order, then measure."""
    images, labels = scenes_of("train", config.train_scenes, config)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed_of(seed, BATCH, step))
        chosen = torch.randint(len(labels), (config.batch_size,), generator=generator)
        return images[chosen], labels[chosen]

    for arm in ARMS:
        network = new_network(arm, seed, config)
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, fused=True)
        folder = arm_folder(Path(run), seed, arm)
        train_stage(network, folder, optimizer, config.rate, batch, config.steps, advance=advance, loss_of=scene_loss)
    return measure_seed(seed, Path(run), config)


def measure_seed(seed: int, run: Path, config: ExperimentConfig) -> SeedResult:
    """Every number of a finished seed, from its weights."""
    scenes = scenes_of(config.split, config.test_scenes, config)
    ious, steadiness = {}, {}
    for arm in ARMS:
        network = trained(arm, seed, run, config)
        ious[arm] = output_ious(network, scenes)
        steadiness[arm] = consistency(network, scenes[0])
    kept = {}
    for omega in omegas():
        network = trained(FASEG, seed, run, replace(config, omega=omega))
        kept[omega] = output_ious(network, scenes)[-1]
    return SeedResult(seed, ious, steadiness, kept)


def scenes_of(split: str, count: int, config: ExperimentConfig) -> Scenes:
    """Scenes of a split with digits of the configured sizes."""
    return make_scenes(split, count, (config.smallest, config.largest))


def arm_folder(run: Path, seed: int, arm: str) -> Path:
    """Where the stage of an arm is kept."""
    return run / f"seed-{seed}" / arm


def trained(arm: str, seed: int, run: Path, config: ExperimentConfig) -> SceneNetwork:
    """An arm's network with its trained weights, in eval mode; `omega` is no property of the weights."""
    network, path = new_network(arm, seed, config), arm_folder(run, seed, arm) / "weights.safetensors"
    load_strict(network, read_weights(path), str(path))
    return network.eval()
