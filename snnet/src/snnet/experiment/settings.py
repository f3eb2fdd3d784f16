"""Settings of the embedded experiment on handwritten digits, and how many steps each of its arms takes.

The arms (all with the same data, order and batch size, paired over seeds):

    anchors                 three plain ViTs, trained one after the other
    least squares           the stitched network, stitching layers by least squares, tuned jointly: the method
    default initialisation  the same, from PyTorch's default initialisation, with the same ids and batches
    tuned alone             each anchor tuned for as many steps as the stitched network
    distilled               the middle anchor tuned for as many steps with the large one as its teacher
    from scratch            one network of every stitch's shape, which share the whole budget (anchors and joint) evenly
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from paperkit.errors import UserError
from paperkit.training.savings import EMA, Savings, check
from snnet.method.sampling import REFUSED_SAVINGS

TRAINING_IMAGES = 1197
METHOD, DEFAULT = "least squares", "default initialisation"
ANCHOR_NAMES = ("small", "middle", "large")


@dataclass(frozen=True)
class SeedResult:
    """What one seed gave. Accuracies in percent.

    Attributes:
        arms: arm -> configuration id -> accuracy at the end.
        curves: arm -> epoch -> configuration id -> accuracy.
        macs, params: multiply-adds and parameters per configuration.
        names: each configuration in words.
        cuts: per configuration (front anchor, p, q), None for an anchor alone.
        switch_keeps_weights: whether choosing every configuration in turn left every weight as it was.
    """

    seed: int
    arms: dict[str, dict[int, float]]
    curves: dict[str, dict[int, dict[int, float]]]
    macs: list[int]
    params: list[int]
    names: list[str]
    cuts: list[tuple[int, int, int] | None]
    switch_keeps_weights: bool


@dataclass(frozen=True)
class ExperimentConfig:
    """Settings of one run.

    Args:
        seeds: how many seeds; the README's table has five.
        first_seed: the first of them. Settings were searched on other seeds (1 to 3) and a validation split.
        widths, heads, depth: of the three anchors, patch size 2, MLP ratio 2.
        batch_size: images per step.
        anchor_epochs: epochs of each anchor.
        anchor_lrs: their learning rates.
        joint_epochs: epochs of the stitched network, and of each arm it is compared with.
        joint_lr: learning rate of the joint training.
        measured_epochs: epochs after which every stitch is evaluated.
        weight_decay: of every arm.
        stitches_per_step: configurations a joint step runs.
        init_images: images for least squares.
        scratch_every: train every so many of the stitches' shapes from scratch, the slowest baseline; 1 is all of
            them, 0 none.
        val_images: hold this many training images out and evaluate on them instead of the test images (to choose
            settings).
        processes: seeds that run side by side; 0 is one per core.
        precision: of all trainings: 32-true or bf16-mixed.
        accumulate_grad_batches: batches of one optimiser step.
        gradient_clip_val: largest norm of the gradients; None does not clip.
        savings: switches of every training step that save time or memory.
        ema: averaged weights; the curves along the way are those of the weights that are trained.
    """

    seeds: int = 2
    first_seed: int = 10
    widths: tuple[int, int, int] = (8, 16, 48)
    heads: tuple[int, int, int] = (2, 2, 4)
    depth: int = 4
    batch_size: int = 32
    anchor_epochs: int = 40
    anchor_lrs: tuple[float, float, float] = (5e-3, 3e-3, 1e-3)
    joint_epochs: int = 30
    joint_lr: float = 2e-3
    measured_epochs: tuple[int, ...] = (1, 3, 10, 30)
    weight_decay: float = 0.05
    stitches_per_step: int = 1
    init_images: int = 100
    scratch_every: int = 4
    val_images: int = 0
    processes: int = 0
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    savings: Savings = field(default_factory=Savings)
    ema: EMA = field(default_factory=EMA)

    anchor_names: tuple[str, ...] = field(default=ANCHOR_NAMES, init=False)

    @property
    def trainer(self) -> dict[str, Any]:
        """What the settings change of Lightning's Trainer."""
        return {
            "accelerator": "cpu",
            "precision": self.precision,
            "accumulate_grad_batches": self.accumulate_grad_batches,
            "gradient_clip_val": self.gradient_clip_val,
        }

    @property
    def seed_list(self) -> list[int]:
        return list(range(self.first_seed, self.first_seed + self.seeds))

    @property
    def num_pairs(self) -> int:
        """Cuts per anchor pair (window 2, stride 1)."""
        return 3 * self.depth - 2

    @property
    def num_configurations(self) -> int:
        return 3 + 2 * self.num_pairs

    @property
    def steps_per_epoch(self) -> int:
        return (TRAINING_IMAGES - self.val_images) // self.batch_size

    @property
    def joint_steps(self) -> int:
        return self.joint_epochs * self.steps_per_epoch

    @property
    def scratch_epochs(self) -> int:
        """Epochs of each network trained from scratch: anchors' and joint epochs over the number of configurations."""
        return max(1, round((3 * self.anchor_epochs + self.joint_epochs) / self.num_configurations))

    @property
    def scratch_ids(self) -> list[int]:
        """The configurations whose shape is trained from scratch."""
        return list(range(3, self.num_configurations))[:: self.scratch_every] if self.scratch_every else []

    @property
    def total_steps(self) -> int:
        """Training steps of one seed, over all arms (for the progress bar)."""
        epochs = 3 * self.anchor_epochs + 6 * self.joint_epochs
        epochs += len(self.scratch_ids) * self.scratch_epochs
        return epochs * self.steps_per_epoch

    def anchors(self) -> list[dict[str, Any]]:
        """The three anchors as `SNNet` takes them."""
        size = {"img_size": 8, "patch_size": 2, "depth": self.depth, "mlp_ratio": 2}
        return [
            {"name": "vit_tiny_patch16_224", **size, "embed_dim": width, "num_heads": heads}
            for width, heads in zip(self.widths, self.heads, strict=True)
        ]


def check_experiment(config: ExperimentConfig) -> None:
    """Refuse settings that would end in an error, maybe after all training, and savings that an arm cannot take.

    Raises:
        UserError: naming what does not go together.
    """
    for name in ("seeds", "depth", "batch_size", "anchor_epochs", "joint_epochs", "stitches_per_step", "init_images"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} {getattr(config, name)} must be at least 1")
    for name in ("scratch_every", "val_images", "processes"):
        if getattr(config, name) < 0:
            raise UserError(f"{name} {getattr(config, name)} must be at least 0")
    for name, most in (("seeds", 1000), ("depth", 100)):
        if getattr(config, name) > most:
            raise UserError(f"{name} {getattr(config, name)} must be at most {most}")
    if not 0 < config.widths[0] < config.widths[1] < config.widths[2]:
        raise UserError(f"widths {list(config.widths)} must grow: a stitch lies between two anchors of different cost")
    for width, heads in zip(config.widths, config.heads, strict=True):
        if heads < 1 or width % heads:
            raise UserError(f"heads {heads} does not divide width {width}")
    if config.steps_per_epoch < 1:
        images = TRAINING_IMAGES - config.val_images
        raise UserError(f"batch_size {config.batch_size} and val_images {config.val_images}: {images} images train")
    if config.batch_size % config.stitches_per_step:
        raise UserError(f"stitches_per_step {config.stitches_per_step} does not divide batch_size {config.batch_size}")
    arms = {"keep_hardest": "its middle anchor is also trained by distillation, whose images have no loss of their own"}
    check(config.savings, config.trainer, ema=config.ema, refused={**REFUSED_SAVINGS, **arms})


def from_plain(content: Mapping[str, Any]) -> ExperimentConfig:
    """The settings in a run folder's config.yaml, which knows neither tuples nor dataclasses.

    Raises:
        UserError: if they are not those of the embedded experiment.
    """
    try:
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        settings.pop("engine", None)
        savings, ema = Savings(**settings.pop("savings", {})), EMA(**settings.pop("ema", {}))
        return ExperimentConfig(**settings, savings=savings, ema=ema)
    except TypeError as error:
        raise UserError(f"this is not a run of the embedded experiment: {error}") from None
