"""Options of a run on real data: data, backbone, method and recipe. The defaults are the released VTAB-1k run."""

import os
from dataclasses import dataclass
from typing import Literal

from paperkit.training.optim import OptimConfig


@dataclass
class DataOptions:
    """What to tune on.

    Attributes:
        kind: which of the paper's collections.
        name: task or set inside it (`cifar`, `cub`, `food101`, ...).
        root: folder of the collection (`vtab`: of all tasks; otherwise of the set itself).
        domains: with few-shot ImageNet: folder of the four shifted ImageNets, evaluated on as well.
        final: train on train + validation, evaluate on test (the released `--test`). Otherwise train on the
            training part and evaluate on validation, for choosing the budget.
        shots, list_seed: which few-shot list.
        transform: see `spt.training.image_lists.make_transform`.
        size: pixels.
        workers: loader processes.
    """

    kind: Literal["vtab", "fgvc", "few_shot"] = "vtab"
    name: str = "cifar"
    root: str = "data/vtab-1k"
    domains: str | None = None
    final: bool = True
    shots: int = 16
    list_seed: int = 0
    transform: Literal["direct", "crop", "resized_crop"] = "direct"
    size: int = 224
    workers: int = 4

    def __post_init__(self) -> None:
        self.root = os.path.expanduser(self.root)
        self.domains = self.domains and os.path.expanduser(self.domains)


@dataclass
class BackboneOptions:
    """What is tuned.

    Attributes:
        arch: timm architecture.
        file: pretrained file in its authors' format (`spt.models.backbones.BACKBONES` names them); None starts at
            random, which is only for trying things out.
        format: layout of the file; told from its keys when None.
        drop_path: rises linearly to this over the blocks.
        part: which of several sets of weights in the file (`teacher`).
        trust_pickle: read a file that wants to run code.
        sizes: further arguments of timm's constructor (`{"depth": 2}`), for small trials.
    """

    arch: str = "vit_base_patch16_224"
    file: str | None = None
    format: Literal["npz", "mae", "moco", "swin", "convnext", "timm"] | None = None
    drop_path: float = 0.1
    part: str | None = None
    trust_pickle: bool = False
    sizes: dict | None = None

    def __post_init__(self) -> None:
        self.file = self.file and os.path.expanduser(self.file)


@dataclass
class MethodOptions:
    """How the budget is spent.

    Attributes:
        name: `spt`, or a baseline in the same harness: `linear`, `full`, `bias`, `lora`, `adapter`,
            `adaptformer`, `vpt`.
        budget: counted parameters, head not among them.
        structured_type, rank, alpha, beta, structured_vector, structured_only, search, init, drop, drop_path: of
            `spt.SPTConfig`; `rank` is also the width of a baseline's modules and the number of prompts.
        sensitivity_batches: batches of 32 images (released command: 16).
        heads: random heads to sum over.
        selection: a released `param_req_*.pth` in place of measuring.
        sensitivities: a saved sensitivity file in place of measuring; it must be of this very backbone.
    """

    name: Literal["spt", "linear", "full", "bias", "lora", "adapter", "adaptformer", "vpt"] = "spt"
    budget: int = 400_000
    structured_type: Literal["lora", "adapter", "lora_bias", "none"] = "lora"
    rank: int = 8
    alpha: float = 10.0
    beta: float = 5.0
    structured_vector: bool = True
    structured_only: bool = False
    search: Literal["exact", "official"] = "official"
    init: Literal["zero", "official"] = "official"
    drop: float = 0.1
    drop_path: float = 0.1
    sensitivity_batches: int = 16
    heads: int = 1
    selection: str | None = None
    sensitivities: str | None = None

    def __post_init__(self) -> None:
        self.selection = self.selection and os.path.expanduser(self.selection)
        self.sensitivities = self.sensitivities and os.path.expanduser(self.sensitivities)


@dataclass
class RecipeOptions:
    """Optimiser and schedule of the shipped commands: AdamW, cosine, the rate constant within an epoch.

    Attributes:
        epochs, batch_size, eval_batch_size, lr, min_lr, warmup_lr, warmup_epochs, weight_decay: as released.
        seed: of the head, of everything random in training.
        eval_every: epochs between evaluations; the last ten epochs are all evaluated, as released.
    """

    epochs: int = 100
    batch_size: int = 64
    eval_batch_size: int = 128
    lr: float = 1e-3
    min_lr: float = 1e-5
    warmup_lr: float = 1e-6
    warmup_epochs: int = 10
    weight_decay: float = 1e-4
    seed: int = 0
    eval_every: int = 10

    def optim(self) -> OptimConfig:
        """Optimiser and schedule: AdamW, the cosine counted from epoch 0 (warm-up included), one epoch late.

        The released scheduler is stepped with the number of the epoch that has ended, so the first two epochs both run
        at `warmup_lr` (reference file `lr_schedule`).
        """
        return OptimConfig(
            lr=self.lr,
            weight_decay=self.weight_decay,
            betas=(0.9, 0.999),
            eps=1e-8,
            warmup_epochs=self.warmup_epochs,
            warmup_lr=self.warmup_lr,
            min_lr=self.min_lr,
            step_per="epoch",
            lag=1,
        )
