"""The embedded experiment's parts B and C for one seed, from top to bottom; part A is in `single_layer`.

Every network is a stage with a folder of its own: it can be resumed at any step, and is kept when it is done.
Shapes: B batch, N test samples.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics.functional.classification import binary_auroc

from litv2.experiment.digit_frequencies import digit_network, spectra, split_digits
from litv2.experiment.settings import ExperimentConfig, SeedResult, arm_name
from litv2.experiment.two_markers import marker_network, sample_markers
from paperkit.data.seeding import seed_generators, seed_of
from paperkit.files.weights import load_strict, read_weights
from paperkit.training.stages import train_stage

Batch = tuple[Tensor, Tensor]
Advance = Callable[[int], None]
MARKERS, DIGITS, TEST = 1, 2, 3  # streams of random numbers


def run_seed(seed: int, advance: Advance, run: str, config: ExperimentConfig) -> SeedResult:
    """Train every network of one seed in the run folder `run`, then measure."""
    folder = Path(run) / f"seed-{seed}"
    digits = split_digits(seed)

    def marker_batch(step: int) -> Batch:
        return sample_markers(config.batch_size, torch.Generator().manual_seed(seed_of(seed, MARKERS, step)))

    def digit_batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(seed_of(seed, DIGITS, step))
        chosen = torch.randint(len(digits.labels), (config.batch_size,), generator=generator)
        return digits.images[chosen], digits.labels[chosen]

    for arm, alpha in config.arms.items():
        stages = (
            ("markers", marker_network, marker_batch, config.marker_steps),
            ("digits", digit_network, digit_batch, config.digit_steps),
        )
        for part, build, batch, steps in stages:
            model = seeded(build, alpha, seed)
            optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
            schedule = OneCycleLR(optimizer, max_lr=config.lr, total_steps=steps)
            train_stage(model, folder / f"{part} {arm}", optimizer, schedule, batch, steps, advance=advance)
    return measure_seed(seed, Path(run), config)


def seeded(build: Callable[[float | None], nn.Module], alpha: float | None, seed: int) -> nn.Module:
    """A network whose initial weights are a function of the seed."""
    seed_generators(seed)
    return build(alpha)


def measure_seed(seed: int, run: Path, config: ExperimentConfig) -> SeedResult:
    """Every number of a finished seed, computed from its saved weights."""
    folder, digits = run / f"seed-{seed}", split_digits(seed)
    grids, labels = sample_markers(config.marker_test, torch.Generator().manual_seed(seed_of(seed, TEST)))
    markers, rankings, losses, accuracies = {}, {}, {}, {}
    for arm, alpha in config.arms.items():
        model = _trained(marker_network(alpha), folder / f"markers {arm}")
        markers[arm], rankings[arm] = accuracy(model, grids, labels), ranking(model, grids, labels)
        losses[arm] = cross_entropy(model, grids, labels)
        model = _trained(digit_network(alpha), folder / f"digits {arm}")
        accuracies[arm] = accuracy(model, digits.test_images, digits.test_labels)
    shares, over_dc = {}, {}
    profiles: dict[str, Any] = {}
    for state in ("initial", "trained"):
        model = seeded(digit_network, 0.5, seed).eval()
        if state == "trained":
            _trained(model, folder / f"digits {arm_name(0.5)}")
        shares[state], over_dc[state], profiles = spectra(model, digits.test_images)  # type: ignore[arg-type]
    return SeedResult(seed, markers, rankings, losses, accuracies, shares, over_dc, profiles)


def _trained(model: nn.Module, folder: Path) -> nn.Module:
    path = folder / "weights.safetensors"
    load_strict(model, read_weights(path), str(path))
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Percent of right answers."""
    return 100 * (model.eval()(inputs).argmax(dim=-1) == labels).double().mean().item()


@torch.no_grad()
def ranking(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Percent of pairs of one sample of each of two classes that the network ranks rightly (area under the ROC curve).

    Unlike the accuracy it has no threshold; 50 is chance.
    """
    logits = model.eval()(inputs)
    return 100 * binary_auroc(logits[:, 1] - logits[:, 0], labels).item()


@torch.no_grad()
def cross_entropy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats."""
    return F.cross_entropy(model.eval()(inputs), labels).item()
