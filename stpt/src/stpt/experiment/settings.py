"""Settings of the embedded experiment, and what one of its seeds returns. No torch in here."""

from dataclasses import dataclass, field
from math import cos, pi

LLGG, LLLL = "LLGG", "LLLL"
"""Local (L) or global (G) attention in each of the four stages: the paper's pattern, and local attention alone."""
REFINED = f"{LLGG}, refined"
"""The paper's pattern with AFSD's whole head: what the refinement of boundaries does."""
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
"""Temporal IoU from which on a detection counts; the average over them is the figure of THUMOS14."""


@dataclass(frozen=True)
class ExperimentConfig:
    """Backbones with local and global attention on clips of moving digits.

    Args:
        seeds: how many.
        first_seed: the first of them.
        split: whose scans the measured clips show; `val` where settings are chosen.
        also: further patterns that are trained beside LLGG and LLLL, such as GGGG.
        refined: train AFSD's whole head on LLGG as well: coarse against refined boundaries, soft-NMS on and off.
        steps: of training, for each arm.
        batch_size: clips a step.
        lr: highest learning rate of AdamW, after a tenth of the steps.
        test_clips: clips that measure.
        channels: of the head.
        processes: seeds that run side by side; 0 is one a core.
    """

    seeds: int = 3
    first_seed: int = 0
    split: str = "test"
    also: list[str] = field(default_factory=list)
    refined: bool = False
    steps: int = 160
    batch_size: int = 16
    lr: float = 3e-3
    test_clips: int = 64
    channels: int = 64
    processes: int = 0

    @property
    def seed_list(self) -> list[int]:
        """The seeds."""
        return list(range(self.first_seed, self.first_seed + self.seeds))

    def rate(self, step: int) -> float:
        """Learning rate of a step: up along a line in the first tenth, then down along half a cosine."""
        warm = self.steps / 10
        if step < warm:
            return self.lr * (step + 1) / (warm + 1)
        return self.lr * (1 + cos(pi * (step - warm) / (self.steps - warm))) / 2

    @property
    def patterns(self) -> list[str]:
        """The patterns that are trained with the coarse head."""
        return [LLGG, LLLL, *(pattern for pattern in self.also if pattern not in (LLGG, LLLL))]

    @property
    def arms(self) -> list[str]:
        """Everything that is trained."""
        return [*self.patterns, *([REFINED] if self.refined else [])]


@dataclass(frozen=True)
class SeedResult:
    """What one seed gave.

    Attributes:
        precision: arm -> mean average precision in % at each of `THRESHOLDS`. The refined arm has four entries: coarse
            or refined, with or without soft-NMS.
        change: pattern -> largest change of an output late in the clip when nothing but the cue changes.
    """

    seed: int
    precision: dict[str, list[float]]
    change: dict[str, float]
