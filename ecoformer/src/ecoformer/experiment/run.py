"""The embedded experiment's three parts for one seed, from top to bottom.

Every hash of part A is a file, every network of parts B and C a stage with a folder of its own: it can be resumed at
any step, and is kept when it is done.
"""

from collections.abc import Callable, Collection
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from ecoformer.experiment import settings as names
from ecoformer.experiment.cluster_majority import sample_majority
from ecoformer.experiment.networks import DigitNetwork, Hashed, MajorityNetwork
from ecoformer.experiment.patch_tokens import fit_codes, measure_codes
from ecoformer.experiment.settings import DIGIT_TRAIN, ExperimentConfig, SeedResult
from ecoformer.method.attention import ask_for_fit
from paperkit.data.seeding import seed_generators, seed_of
from paperkit.files.weights import load_strict, read_weights
from paperkit.training.stages import train_stage

Batch = tuple[Tensor, Tensor]
Advance = Callable[[int], None]
DIGITS, MAJORITY, TEST = 1, 2, 3  # streams of random numbers
DIGIT_REFIT = 3  # epoch, as specified
MAJORITY_REFITS = (0.2, 0.5)  # of the steps: 100 and 250 of 500
OFTEN = 0.05  # of the steps between fits of the arm that fits often


def digit_hash(config: ExperimentConfig) -> Hashed:
    """Part B's hashes."""
    return Hashed(supports=8, topk=3, iterations=config.fit_iterations)


def majority_hash(config: ExperimentConfig) -> Hashed:
    """Part C's hashes."""
    return Hashed(supports=12, topk=6, iterations=config.fit_iterations)


def split_digits(seed: int) -> tuple[Batch, Batch]:
    """1200 images to train on and 597 to test on, (B, 1, 8, 8) in [0, 1] with labels; the split is the seed's."""
    scans, targets = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(scans.reshape(-1, 1, 8, 8)).float() / 16, torch.from_numpy(targets).long()
    train, test = train_test_split(
        torch.arange(len(labels)).numpy(), train_size=DIGIT_TRAIN, stratify=targets, random_state=seed
    )
    return (images[train], labels[train]), (images[test], labels[test])


def run_seed(seed: int, advance: Advance, run: str, config: ExperimentConfig) -> SeedResult:
    """Fit every hash and train every network of one seed in the run folder `run`, then measure."""
    folder = seed_folder(Path(run), seed)
    fit_codes(seed, config, folder / "codes")
    (images, labels), _ = split_digits(seed)
    epoch_steps = DIGIT_TRAIN // config.batch_size

    def digit_batch(step: int) -> Batch:
        epoch, place = divmod(step, epoch_steps)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed_of(seed, DIGITS, epoch)))
        chosen = order[place * config.batch_size :][: config.batch_size]
        return images[chosen], labels[chosen]

    def majority_batch(step: int) -> Batch:
        return sample_majority(config.batch_size, torch.Generator().manual_seed(seed_of(seed, MAJORITY, step)))

    for arm in config.arms("digits"):
        model = digit_network(arm, seed, config)
        refits = {DIGIT_REFIT * epoch_steps}
        place = folder / f"digits {arm}"
        _train(model, place, digit_batch, config.digit_steps, config.digit_lr, refits, seed, advance)
    if config.has_majority(seed):
        for arm in config.arms("majority"):
            model = majority_network(arm, seed, config)
            place, steps = folder / f"majority {arm}", config.majority_steps
            refits = {round(share * steps) for share in MAJORITY_REFITS}
            if arm == names.OFTEN:
                refits = set(range(0, steps, max(1, round(OFTEN * steps))))
            _train(model, place, majority_batch, steps, config.majority_lr, refits, seed, advance)
    return measure_seed(seed, Path(run), config)


def _train(
    model: nn.Module,
    folder: Path,
    batch: Callable[[int], Batch],
    steps: int,
    lr: float,
    refits: Collection[int],
    seed: int,
    advance: Advance,
) -> None:
    """A stage whose hashes are fitted on the first batch and again on those of `refits`."""

    def fitting_batch(step: int) -> Batch:
        if step in refits:
            ask_for_fit(model)
        seed_generators(seed, TEST, step)  # a fit draws its supports in the forward pass
        return batch(step)

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    train_stage(model, folder, optimizer, schedule, fitting_batch, steps, advance=advance)


def digit_network(arm: str, seed: int, config: ExperimentConfig) -> nn.Module:
    """A network of part B whose initial weights are a function of the seed."""
    seed_generators(seed, DIGITS)
    return DigitNetwork(arm, digit_hash(config))


def majority_network(arm: str, seed: int, config: ExperimentConfig) -> nn.Module:
    """A network of part C whose initial weights are a function of the seed."""
    seed_generators(seed, MAJORITY)
    return MajorityNetwork(arm, majority_hash(config))


def measure_seed(seed: int, run: Path, config: ExperimentConfig) -> SeedResult:
    """Every number of a finished seed, computed from its hashes and saved weights."""
    folder = seed_folder(run, seed)
    _, (images, labels) = split_digits(seed)
    digits = {
        arm: accuracy(trained(digit_network(arm, seed, config), folder / f"digits {arm}"), images, labels)
        for arm in config.arms("digits")
    }
    majority = {}
    if config.has_majority(seed):
        tokens, answers = sample_majority(config.majority_test, torch.Generator().manual_seed(seed_of(seed, TEST)))
        for arm in config.arms("majority"):
            model = trained(majority_network(arm, seed, config), folder / f"majority {arm}")
            majority[arm] = accuracy(model, tokens, answers)
    return SeedResult(seed, **measure_codes(seed, config, folder / "codes"), digits=digits, majority=majority)


def seed_folder(run: Path, seed: int) -> Path:
    """What a seed leaves."""
    return run / f"seed-{seed}"


def trained(model: nn.Module, folder: Path) -> nn.Module:
    """The network with its stage's weights, in eval mode."""
    path = folder / "weights.safetensors"
    load_strict(model, read_weights(path), str(path))
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Percent of right answers."""
    return 100 * (model(inputs).argmax(-1) == labels).double().mean().item()
