"""Settings of the embedded experiment, and what one of its seeds returns. No torch in here.

Part A, cost: one attention layer at three grid sizes, multiply-adds, kept activations and time of HiLo and its rivals.
Part B, two markers: generated grids whose label no classifier without a global path can know.
Part C, frequency split: what frequencies the two branches hold after training on handwritten digits.
"""

from dataclasses import dataclass, field

MSA = "MSA"


def arm_name(alpha: float) -> str:
    """How tables call HiLo with a share of Lo-Fi heads."""
    return f"HiLo alpha {alpha:g}"


@dataclass(frozen=True)
class ExperimentConfig:
    """Settings of one run.

    Args:
        seeds: how many seeds.
        first_seed: the first of them.
        alphas: HiLo's shares of Lo-Fi heads in parts B and C; plain MSA runs beside them. 0.5 carries the claims.
        marker_steps: training steps of each network of part B.
        marker_test: test samples of part B.
        digit_steps: training steps of each network of part C.
        batch_size: samples a step in both parts.
        lr: peak of the one-cycle schedule in both parts.
        timing_pairs: timed pairs per mechanism of part A; 0 leaves the clock out.
        processes: seeds that run side by side; 0 is one a core. Three share two cores sooner than two and then one.
    """

    seeds: int = 3
    first_seed: int = 0
    alphas: tuple[float, ...] = (0.0, 0.5, 1.0)
    marker_steps: int = 250
    marker_test: int = 2048
    digit_steps: int = 300
    batch_size: int = 64
    lr: float = 3e-3
    timing_pairs: int = 7
    processes: int = 3

    @property
    def seed_list(self) -> list[int]:
        """The seeds."""
        return list(range(self.first_seed, self.first_seed + self.seeds))

    @property
    def arms(self) -> dict[str, float | None]:
        """Name of each network in parts B and C, and its alpha (None: MSA)."""
        return {**{arm_name(alpha): alpha for alpha in self.alphas}, MSA: None}

    @property
    def total_steps(self) -> int:
        """Training steps of one seed (for the progress bar)."""
        return len(self.arms) * (self.marker_steps + self.digit_steps)


@dataclass(frozen=True)
class SeedResult:
    """What one seed gave.

    Attributes:
        markers: arm -> test accuracy of part B, in percent.
        marker_rankings: arm -> percent of rightly ranked pairs of part B (area under the ROC curve; 50 is chance).
        marker_losses: arm -> test cross-entropy of part B, in nats.
        digits: arm -> test accuracy of part C, in percent.
        shares: "trained" or "initial" -> (block, branch) -> energy share beyond a quarter cycle a token, DC included.
        band_over_dc: the same keys -> mean log amplitude of that band minus the log amplitude of DC.
        profiles: (block, branch) -> (frequencies, mean log amplitudes) after training.
    """

    seed: int
    markers: dict[str, float]
    marker_rankings: dict[str, float]
    marker_losses: dict[str, float]
    digits: dict[str, float]
    shares: dict[str, dict[str, float]]
    band_over_dc: dict[str, dict[str, float]]
    profiles: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
