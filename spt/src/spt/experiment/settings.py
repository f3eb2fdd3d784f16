"""Settings of the embedded experiment on handwritten digits, and what one seed of it gives."""

from dataclasses import dataclass, field

TASKS = ("invert", "flip", "rotation", "location")
SENSITIVE, RANDOM, LEAST, LINEAR = "sensitive entries", "random entries", "least sensitive entries", "linear probe"

# Every arm trains the head and the class token; `budget` parameters beside them, but for the last two.
ARMS = {
    SENSITIVE: "the entries of Linear weights with the largest squared gradient",
    "sensitive entries, 4 heads": "the same, gradients summed over four random heads",
    RANDOM: "as many entries at random",
    LEAST: "the entries with the smallest squared gradient",
    "largest magnitude": "the entries with the largest absolute value",
    "SPT-LoRA": "allocation with rank-1 LoRA, alpha 10, beta 5",
    "SPT-Adapter": "allocation with rank-1 adapters",
    "SPT-LoRA, wrong places": "the same allocation from shuffled sensitivities",
    "LoRA on q, v": "rank 1 on every query and value",
    "Adapter": "rank-1 adapters on fc2, and on proj as far as the budget goes",
    "AdaptFormer": "bottlenecks beside the MLPs, scale 0.1",
    "VPT-Deep": "prompt tokens in every block",
    "BitFit (q, fc1)": "biases of query and fc1",
    "peft LoRA": "rank 1 on v, q, then proj, through HF peft",
    "peft DoRA": "the same with magnitude vectors",
    "peft AdaLoRA": "ranks allocated in training, to rank 1 on average",
    "peft SHiRA, sensitive mask": "in (1 + 1) places a module, our ranking inside each module",
    "peft SHiRA, random mask": "the same, peft's own mask",
    "peft Supertuning": "peft's magnitude support in every Linear",
    LINEAR: "nothing beside the head and the class token",
    "full fine-tuning": "everything (no budget)",
}
ON_REQUEST = ("sensitive entries, 4 heads", "Adapter", "AdaptFormer", "VPT-Deep", "peft SHiRA, random mask")


@dataclass(frozen=True)
class ExperimentConfig:
    """Settings of one run.

    Args:
        seeds: how many seeds.
        first_seed: the first of them.
        tasks: downstream tasks.
        arms: arms to run; empty for the default ones (about two minutes), `all` for every one.
        budget: trained parameters beside head and class token, which every arm trains.
        steps: of tuning.
        batch_size: of tuning.
        lr: peak learning rate of tuning; warm-up over a tenth of the steps, then cosine.
        full_lr: of full fine-tuning, which diverges at `lr` (chosen on validation images).
        train_images: of each task.
        val_images: of these, held out and evaluated on instead of the test images (to choose settings).
        pretrain_steps: of the backbone, batch 64.
        pretrain_lr: its peak learning rate.
        backbone_seed: of the backbone and of the half of the digits that it sees.
        processes: seeds that run side by side; 0 is one per core.
    """

    seeds: int = 4
    first_seed: int = 0
    tasks: tuple[str, ...] = TASKS
    arms: tuple[str, ...] = ()
    budget: int = 700
    steps: int = 80
    batch_size: int = 32
    lr: float = 1e-2
    full_lr: float = 2e-3
    train_images: int = 250
    val_images: int = 0
    pretrain_steps: int = 700
    pretrain_lr: float = 4e-3
    backbone_seed: int = 0
    processes: int = 0

    def __post_init__(self) -> None:
        from paperkit.errors import UserError

        for chosen, known, what in ((self.tasks, TASKS, "task"), (self.arms, (*ARMS, "all"), "arm")):
            if unknown := [one for one in chosen if one not in known]:
                raise UserError(f"no {what} {unknown[0]!r}; there are {', '.join(known)}")
        counts = {
            "seeds": self.seeds,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "pretrain_steps": self.pretrain_steps,
        }
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"{name} {value} must be at least 1")
        if self.lr <= 0 or self.full_lr <= 0 or self.pretrain_lr <= 0:
            raise UserError("learning rates must be positive")
        if not self.batch_size + self.val_images <= self.train_images <= 800:
            raise UserError(f"train_images {self.train_images} must hold a batch and val_images, and be 800 at most")

    @property
    def arm_list(self) -> tuple[str, ...]:
        """Arms that run, in the order of the table."""
        if not self.arms:
            return tuple(arm for arm in ARMS if arm not in ON_REQUEST)
        return tuple(arm for arm in ARMS if arm in self.arms or "all" in self.arms)

    @property
    def seed_list(self) -> list[int]:
        """The seeds."""
        return list(range(self.first_seed, self.first_seed + self.seeds))

    @property
    def steps_per_seed(self) -> int:
        """Tuning steps of one seed, over all tasks and arms."""
        return len(self.tasks) * len(self.arm_list) * self.steps


@dataclass
class SeedResult:
    """What one seed gave.

    Attributes:
        accuracy: task -> arm -> percent.
        spent: task -> arm -> trained parameters beside head and class token.
        overlap: name of a pair of selections -> Jaccard index of their marks.
        maps: task -> "block|operation" -> share (%) of the parameter's entries among the marks.
        selections: task -> flags of the modules of SPT-LoRA, a row of six a block.
        stairs: (tau, total) of SPT-LoRA on the first task.
        concentration: (share of the entries, share of all sensitivity) on the first task, in percent.
    """

    seed: int
    accuracy: dict[str, dict[str, float]] = field(default_factory=dict)
    spent: dict[str, dict[str, int]] = field(default_factory=dict)
    overlap: dict[str, float] = field(default_factory=dict)
    maps: dict[str, dict[str, float]] = field(default_factory=dict)
    selections: dict[str, list[list[int]]] = field(default_factory=dict)
    stairs: list[tuple[int, int]] = field(default_factory=list)
    concentration: list[tuple[float, float]] = field(default_factory=list)
