"""Settings of the embedded experiment, and what one of its seeds returns. No torch in here."""

from dataclasses import dataclass
from typing import Literal

BASE, DFPQ, HRCA, FASEG = "base", "dfpq", "hrca", "faseg"
ARMS: dict[str, tuple[Literal["dfpq", "learned"], bool]] = {
    BASE: ("learned", False),
    DFPQ: ("dfpq", False),
    HRCA: ("learned", True),
    FASEG: ("dfpq", True),
}
"""Arm -> kind of positional query, and whether every fourth layer attends to the chosen windows of the finest map.

Attention threshold and conditional key positions are the same in all of them.
"""


@dataclass(frozen=True)
class ExperimentConfig:
    """Four decoders on scenes of digits.

    Args:
        seeds: how many.
        first_seed: the first of them.
        split: whose scenes measure; `val` where settings are chosen.
        steps: of training, for each arm.
        batch_size: scenes a step.
        lr: learning rate of AdamW at the first step.
        train_scenes: of the training split.
        test_scenes: that measure.
        smallest: side of the smallest digit in pixels.
        largest: side of the largest.
        width: channels of neck and decoder, a multiple of 8.
        queries: of the decoder.
        layers: of the decoder.
        omega: one of so many windows is kept.
        processes: seeds that run side by side; 0 is one a core.
    """

    seeds: int = 2
    first_seed: int = 0
    split: str = "test"
    steps: int = 500
    batch_size: int = 16
    lr: float = 2e-3
    train_scenes: int = 2000
    test_scenes: int = 200
    smallest: int = 9
    largest: int = 14
    width: int = 24
    queries: int = 8
    layers: int = 5
    omega: int = 4
    processes: int = 0

    @property
    def seed_list(self) -> list[int]:
        """The seeds."""
        return list(range(self.first_seed, self.first_seed + self.seeds))

    def rate(self, step: int) -> float:
        """Learning rate of a step: the polynomial schedule of power 0.9."""
        return self.lr * (1 - step / self.steps) ** 0.9


@dataclass(frozen=True)
class SeedResult:
    """What one seed gave.

    Attributes:
        ious: arm -> mean IoU of each output in %, from that of the raw queries to the last.
        consistency: arm -> mean cosine of the attention maps of each pair in `looking.PAIRS`.
        omegas: omega -> mean IoU in % of the last output of `faseg`, trained with the configured one.
    """

    seed: int
    ious: dict[str, list[float]]
    consistency: dict[str, list[float]]
    omegas: dict[int, float]
