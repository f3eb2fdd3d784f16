"""Options of the ADE20K experiment; what the paper's table does not say is the public SETR-PUP recipe."""

import os
from dataclasses import dataclass, field
from typing import Any, Literal

from paperkit.training.savings import Savings
from spt.training.recipe import BackboneOptions, MethodOptions


@dataclass
class SceneOptions:
    """What to segment.

    Attributes:
        kind: the layout; `ade20k`.
        root: folder with `images/{training,validation}/*.jpg` and `annotations/{training,validation}/*.png`.
        classes: K; labels in the files are 1 to K, 0 is ignored, and so is 255 where K is less.
        size: pixels of a training crop and of an evaluation window.
        short_side, long_side: an image is scaled until it fits both.
        stride: of the evaluation windows.
        scales, flip: of the evaluation; the paper's multi-scale column needs several and the mirrored image.
        workers: loader processes.
    """

    kind: Literal["ade20k"] = "ade20k"
    root: str = "data/ade20k"
    classes: int = 150
    size: int = 512
    short_side: int = 512
    long_side: int = 2048
    stride: int = 341
    scales: list[float] = field(default_factory=lambda: [1.0])
    flip: bool = False
    workers: int = 4

    def __post_init__(self) -> None:
        self.root = os.path.expanduser(self.root)


@dataclass
class SegmentationRecipe:
    """SGD with a polynomial schedule; the heads learn `head_factor` times as fast.

    Attributes:
        steps, batch_size, lr, min_lr, power, momentum, weight_decay, head_factor: as stated.
        sensitivity_batch: images of a batch of the measuring pass.
        save_every: steps between checkpoints.
        eval_every: steps between evaluations; the last step is always evaluated.
        seed: of heads, order, crops and everything else that is random.
    """

    steps: int = 160_000
    batch_size: int = 16
    lr: float = 1e-3
    min_lr: float = 1e-4
    power: float = 0.9
    momentum: float = 0.9
    weight_decay: float = 0.0
    head_factor: float = 10.0
    sensitivity_batch: int = 16
    save_every: int = 1000
    eval_every: int = 16_000
    seed: int = 0

    def lr_at(self, step: int, factor: float = 1.0) -> float:
        """Learning rate of a step from 0; `min_lr` is the floor of every group."""
        left = (1 - min(step, self.steps) / self.steps) ** self.power
        return (factor * self.lr - self.min_lr) * left + self.min_lr


@dataclass
class SegmentationOptions:
    """All options of a run on ADE20K; `savings` are the kit's, `trainer` goes to Lightning's Trainer as it is."""

    data: SceneOptions = field(default_factory=SceneOptions)
    backbone: BackboneOptions = field(default_factory=BackboneOptions)
    method: MethodOptions = field(default_factory=MethodOptions)
    recipe: SegmentationRecipe = field(default_factory=SegmentationRecipe)
    savings: Savings = field(default_factory=Savings)
    trainer: dict[str, Any] = field(default_factory=dict)
