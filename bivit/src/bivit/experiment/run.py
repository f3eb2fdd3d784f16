"""The embedded experiment's parts for one seed, from top to bottom.

Every stage of a network has a folder of its own: it can be resumed at any step, and is kept when it is done.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from bivit.experiment.digit_transformer import LONG, SHORT, Geometry, built, digit_transformer, stages, start_stage
from bivit.experiment.rows import measure_rows
from bivit.experiment.settings import LONG_STUDENTS, TEACHER, TEST, TRAIN, VAL, ExperimentConfig, SeedResult
from paperkit.data.seeding import seed_generators, seed_of
from paperkit.files.atomic import write_atomic
from paperkit.files.weights import load_strict, read_weights
from paperkit.training.stages import train_stage

Batch = tuple[Tensor, Tensor]
Advance = Callable[[int], None]
WEIGHTS, ORDER = 1, 2  # streams of random numbers
WEIGHT_DECAY = 0.05  # of the teacher
WARM_UP = 0.05  # of the steps


def split_digits(seed: int) -> tuple[Batch, Batch, Batch]:
    """Images (B, 1, 8, 8) in [-1, 1] with labels, to train, validate and test on; the split is the seed's."""
    scans, targets = load_digits(return_X_y=True)
    images = torch.from_numpy(scans.reshape(-1, 1, 8, 8)).to(torch.get_default_dtype()) / 8 - 1
    labels = torch.from_numpy(targets).long()
    split = partial(train_test_split, random_state=seed)
    train, rest = split(range(len(targets)), train_size=TRAIN, stratify=targets)
    val, test = split(rest, train_size=VAL, test_size=TEST, stratify=targets[rest])
    return (images[train], labels[train]), (images[val], labels[val]), (images[test], labels[test])


def run_seed(seed: int, advance: Advance, run: str, config: ExperimentConfig) -> SeedResult:
    """Train the teacher and every student of one seed in the run folder `run`, then measure."""
    folder = seed_folder(Path(run), seed)
    train_part(SHORT, config.arms, seed, folder, config, advance)
    if config.has_long(seed):
        train_part(LONG, LONG_STUDENTS, seed, folder / "long", config, advance)
    return measure_seed(seed, Path(run), config)


def train_part(
    geometry: Geometry, students: tuple[str, ...], seed: int, folder: Path, config: ExperimentConfig, advance: Advance
) -> None:
    """A teacher by cross entropy, then its students by the distribution loss, all in the same order of images."""
    (images, labels), validation, _ = split_digits(seed)

    def stage(model: nn.Module, name: str, optimizer: torch.optim.Optimizer, targets: Tensor, epochs: int) -> None:
        """Targets (B,) are labels, (B, K) the teacher's probabilities; the loss of both is the cross entropy."""

        def batch(step: int) -> Batch:
            epoch, place = divmod(step, config.epoch_steps)
            order = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(seed_of(seed, ORDER, epoch)))
            chosen = order[place * config.batch_size :][: config.batch_size]
            return images[chosen], targets[chosen]

        steps = epochs * config.epoch_steps
        rate, place = cosine(config.lr, steps), folder / name
        after = _curve(model, place / "curve.json", validation, config.epoch_steps)
        train_stage(model, place, optimizer, rate, batch, steps, advance=advance, after_step=after)

    teacher = new_teacher(geometry, seed)
    decayed = torch.optim.AdamW(teacher.parameters(), lr=config.lr, weight_decay=WEIGHT_DECAY)
    stage(teacher, TEACHER, decayed, labels, config.teacher_epochs)
    with torch.no_grad():  # no image is augmented, so once is enough
        probabilities = teacher.eval()(images).softmax(-1)
    for name in students:
        student: nn.Module = teacher
        epochs = _split_epochs(config.student_epochs, len(stages(name)))
        for number, (place, count) in enumerate(zip(stages(name), epochs, strict=True), 1):
            student = start_stage(student, name, number)
            stage(student, place, torch.optim.Adam(student.parameters(), lr=config.lr), probabilities, count)


def cosine(lr: float, steps: int) -> Callable[[int], float]:
    """Step -> rate: a linear rise over the first 5 % of the steps, then half a cosine to 0."""
    rise = max(1, round(WARM_UP * steps))

    def rate(step: int) -> float:
        if step < rise:
            return lr * (step + 1) / rise
        return lr * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2

    return rate


def _split_epochs(epochs: int, parts: int) -> list[int]:
    """[20] or [10, 10]."""
    return [epochs // parts + (i < epochs % parts) for i in range(parts)]


def _curve(model: nn.Module, path: Path, validation: Batch, epoch_steps: int) -> Callable[[int], None]:
    """Keeps the validation accuracy of every epoch in a file; a step that is done again writes the same again."""

    def after_step(done: int) -> None:
        if done % epoch_steps:
            return
        kept = json.loads(path.read_text()) if path.is_file() else []
        kept = kept[: done // epoch_steps - 1]
        write_atomic(path, json.dumps([*kept, accuracy(model.eval(), *validation)]) + "\n")
        model.train()

    return after_step


def new_teacher(geometry: Geometry, seed: int) -> nn.Module:
    """A full-precision network whose initial weights are a function of the seed."""
    seed_generators(seed, WEIGHTS)
    return digit_transformer(geometry)


def measure_seed(seed: int, run: Path, config: ExperimentConfig) -> SeedResult:
    """Every number of a finished seed, computed from its saved weights."""
    folder = seed_folder(run, seed)
    _, _, (images, labels) = split_digits(seed)

    def accuracies(geometry: Geometry, students: tuple[str, ...], place: Path) -> dict[str, float]:
        networks = {name: trained(geometry, name, place) for name in (TEACHER, *students)}
        return {name: accuracy(network, images, labels) for name, network in networks.items()}

    curves = {
        name: [value for place in stages(name) for value in json.loads((folder / place / "curve.json").read_text())]
        for name in (TEACHER, *config.arms)
    }
    return SeedResult(
        seed,
        **measure_rows(trained(SHORT, TEACHER, folder), images),
        accuracies=accuracies(SHORT, config.arms, folder),
        curves=curves,
        long=accuracies(LONG, LONG_STUDENTS, folder / "long") if config.has_long(seed) else {},
    )


def seed_folder(run: Path, seed: int) -> Path:
    """What a seed leaves."""
    return run / f"seed-{seed}"


def trained(geometry: Geometry, name: str, folder: Path) -> nn.Module:
    """The teacher, or a student after its last stage, with the weights in `folder`, in eval mode."""
    network = built(name, geometry)
    path = folder / stages(name)[-1] / "weights.safetensors"
    load_strict(network, read_weights(path), str(path))
    return network.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent of right answers."""
    return 100 * (model(images).argmax(-1) == labels).double().mean().item()
