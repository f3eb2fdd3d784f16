"""Settings of the embedded experiment, and what one of its seeds returns. No torch in here.

Part A, similarity: do fitted hash codes keep similarity better than unsupervised codes of the same length?
Part B, digits: accuracy of networks whose attention differs, and the energy of that attention.
Part C, cluster majority: a generated task that needs attention; where the binary forms lose, and what helps them.
"""

from dataclasses import dataclass, field

SHARED, SOFTMAX, PERFORMER, MEAN, SIGN = "shared-QK softmax", "softmax", "Performer", "mean of v", "sign"
ECO, WORKING, CONSISTENT, RANDOM = "EcoFormer", "EcoFormer, working fit", "EcoFormer, global bias", "random hash"
OFTEN, TRAINED, POWER, LOW_BIAS = "fits often", "trained projection", "power of similarity", "lower bias"
TRAINED_POWER = "trained projection and power"

DIGIT_ARMS = (SHARED, ECO, SOFTMAX, WORKING, CONSISTENT, RANDOM, SIGN, PERFORMER, MEAN)
MAJORITY_ARMS = (
    *(SHARED, ECO, WORKING, RANDOM, CONSISTENT, SIGN, PERFORMER),
    *(TRAINED, POWER, TRAINED_POWER, LOW_BIAS, OFTEN, MEAN),
)
BINARY = (ECO, WORKING, RANDOM, CONSISTENT, SIGN)
"""The binary forms whose order to softmax is asserted in part C; the extensions of `EXTENSIONS` are reported."""
EXTENSIONS = (TRAINED, POWER, TRAINED_POWER, LOW_BIAS, OFTEN)

KSH_RANDOM, KSH_OFFICIAL, KSH_SMALL, KSH_LARGE, KSH_ADAM = (
    *("kernel hash, random A", "kernel hash, lr 0.0005 (released)", "kernel hash, lr 0.2"),
    *("kernel hash, lr 1", "kernel hash, Adam"),
)
LSH, COORDINATES = "LSH", "sign of coordinates"
CODES = (KSH_LARGE, KSH_SMALL, KSH_ADAM, KSH_OFFICIAL, KSH_RANDOM, LSH, COORDINATES)


@dataclass(frozen=True)
class ExperimentConfig:
    """Settings of one run.

    Args:
        seeds: of parts A and B.
        first_seed: the first of them.
        majority_seeds: of part C, counted from the first seed.
        digit_arms: networks of part B, or all; the first two carry its claim.
        majority_arms: networks of part C, or all.
        digit_epochs: of part B.
        majority_steps: training steps of each network of part C.
        majority_test: test samples of part C.
        batch_size: samples a step in parts B and C.
        digit_lr: peak of the one-cycle schedule in part B.
        majority_lr: the same in part C.
        fit_images: images on which part A fits.
        test_images: other images on which part A measures.
        fit_iterations: steps for each bit of a hash fit, in all parts.
        sweep: whether part A's first seed also fits other numbers of bits and supports, for a figure.
        processes: seeds that run side by side; 0 is one a core.
    """

    seeds: int = 5
    first_seed: int = 0
    majority_seeds: int = 1
    digit_arms: tuple[str, ...] = DIGIT_ARMS[:2]
    majority_arms: tuple[str, ...] = (
        *(SHARED, ECO, WORKING, SIGN, PERFORMER),
        *(TRAINED, POWER, TRAINED_POWER, MEAN),
    )
    digit_epochs: int = 14
    majority_steps: int = 500
    majority_test: int = 4000
    batch_size: int = 64
    digit_lr: float = 4e-3
    majority_lr: float = 3e-3
    fit_images: int = 32
    test_images: int = 200
    fit_iterations: int = 100
    sweep: bool = True
    processes: int = 0

    @property
    def seed_list(self) -> list[int]:
        """The seeds."""
        return list(range(self.first_seed, self.first_seed + self.seeds))

    def arms(self, part: str) -> tuple[str, ...]:
        """The networks of part "digits" or "majority"; the word "all" stands for every one."""
        chosen, every = {
            "digits": (self.digit_arms, DIGIT_ARMS),
            "majority": (self.majority_arms, MAJORITY_ARMS),
        }[part]
        return every if "all" in chosen else tuple(chosen)

    def has_majority(self, seed: int) -> bool:
        """Whether a seed runs part C."""
        return seed < self.first_seed + self.majority_seeds

    @property
    def digit_steps(self) -> int:
        """Training steps of each network of part B; the rest of an epoch is dropped."""
        return self.digit_epochs * (DIGIT_TRAIN // self.batch_size)

    @property
    def most_steps(self) -> int:
        """Training steps of a seed with all parts (for the progress bar)."""
        majority = len(self.arms("majority")) * self.majority_steps if self.majority_seeds else 0
        return len(self.arms("digits")) * self.digit_steps + majority


DIGIT_TRAIN = 1200


@dataclass(frozen=True)
class SeedResult:
    """What one seed gave.

    Attributes:
        errors: codes -> label error of part A on images that no fit saw.
        aucs: codes -> share of (similar, dissimilar) pairs that their products rank rightly, in percent.
        distances: "before" or "after" the fit -> "similar", "dissimilar" or "unlabelled" pairs -> share of those pairs
            at each Hamming distance 0 .. b.
        fits: codes -> loss of each bit before and after its refinement, and whether it was taken.
        sweep: entries (bits, supports, fit, label error, AUC in percent); empty but in the first seed.
        digits, majority: arm -> test accuracy of parts B and C, in percent; part C's may be missing.
    """

    seed: int
    errors: dict[str, float]
    aucs: dict[str, float]
    distances: dict[str, dict[str, list[float]]]
    fits: dict[str, dict[str, list[float]]]
    sweep: list[dict[str, float | str]] = field(default_factory=list)
    digits: dict[str, float] = field(default_factory=dict)
    majority: dict[str, float] = field(default_factory=dict)
