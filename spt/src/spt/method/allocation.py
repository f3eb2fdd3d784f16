"""Allocation of a budget: which matrices get a module, which vectors and entries are trained (paper section 3.3).

Mark the tau most sensitive scalars. A vector of which at least 1/beta is marked is trained whole; a matrix with at
least K/alpha marks gets a structured module of K parameters; elsewhere the marked entries themselves are trained. tau
is not the budget: what is spent follows from the rule, and `spt.method.budget` searches the tau that meets a budget.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from paperkit.errors import UserError
from spt.method.structured import module_cost

MATRIX_MARKS = (".q.", ".k.", ".v.", "proj", "fc")  # the released rule by names, in this order after norm and bias


@dataclass(frozen=True)
class Rule:
    """How marks turn into trained parameters.

    Attributes:
        structured_type: `lora`, `adapter` or `lora_bias`; `none` trains single entries only.
        rank: r of every module.
        alpha: a matrix needs K / alpha marks for a module of K parameters. 10 as released; 1 is budget-neutral.
        beta: a vector needs 1 / beta of its entries marked to be trained whole.
        structured_vector: train vectors whole at all; also gives adapters their biases (counted with or without).
        structured_only: what stays below its threshold gets nothing and costs nothing.
        fixed: parameters that are trained and counted whatever the budget (768: the class token of ViT-B).
    """

    structured_type: Literal["lora", "adapter", "lora_bias", "none"] = "lora"
    rank: int = 8
    alpha: float = 10.0
    beta: float = 5.0
    structured_vector: bool = True
    structured_only: bool = False
    fixed: int = 768

    def __post_init__(self) -> None:
        if self.structured_type not in ("lora", "adapter", "lora_bias", "none"):
            raise UserError(f"structured_type {self.structured_type!r} is not lora, adapter, lora_bias or none")
        if self.rank < 1 or self.alpha <= 0 or self.beta <= 0:
            raise UserError(f"rank {self.rank}, alpha {self.alpha} and beta {self.beta} must be positive")
        if self.structured_only and self.structured_type == "none":
            raise UserError("structured_only with structured_type none trains nothing")

    def cost(self, shape: torch.Size) -> int:
        """Parameters of the module (matrix) or of the whole vector."""
        if len(shape) == 1:
            return shape[0]
        return module_cost(self.structured_type, shape, self.rank)

    def threshold(self, shape: torch.Size) -> float:
        """Marks from which a parameter is tuned structurally (infinite: never)."""
        if len(shape) == 1:
            return shape[0] / self.beta if self.structured_vector else float("inf")
        return self.cost(shape) / self.alpha if self.structured_type != "none" else float("inf")


@dataclass
class Selection:
    """What is tuned. Names are those of the model with separate q, k and v.

    Attributes:
        modules: matrices that get a structured module.
        vectors: vectors that are trained whole.
        entries: below-threshold name -> sorted flat (row-major) indices of its marks, int64; may be empty.
        shapes: shape of every candidate, in order.
        rule: the rule that made it.
        tau: marks it was made from (0: not from marks).
    """

    modules: list[str]
    vectors: list[str]
    entries: dict[str, Tensor]
    shapes: dict[str, torch.Size]
    rule: Rule = field(default_factory=Rule)
    tau: int = 0

    @property
    def sparse_count(self) -> int:
        """Single entries counted."""
        return sum(index.numel() for index in self.entries.values())

    @property
    def structured_count(self) -> int:
        """Parameters of modules and whole vectors."""
        return sum(self.rule.cost(self.shapes[name]) for name in self.modules) + sum(
            self.shapes[name].numel() for name in self.vectors
        )

    @property
    def counted(self) -> int:
        """Parameters spent against the budget: entries, modules, vectors and the class token, without the head."""
        return self.sparse_count + self.structured_count + self.rule.fixed

    def describe(self) -> str:
        """One line for the screen."""
        return (
            f"{self.counted:,} counted: {len(self.modules)} modules, {len(self.vectors)} vectors, "
            f"{self.sparse_count:,} entries (tau {self.tau:,})"
        )


@dataclass
class Ranking:
    """The most sensitive scalars in descending order.

    Attributes:
        owner: position of the candidate of each mark, int64 [T].
        flat: flat index inside that candidate, int64 [T].
        shapes: candidates in order.
    """

    owner: Tensor
    flat: Tensor
    shapes: dict[str, torch.Size]

    def __len__(self) -> int:
        return self.owner.numel()


def rank_scalars(values: dict[str, Tensor], count: int) -> Ranking:
    """The `count` largest entries over all tensors, descending; equal values in the order of the parameters.

    One pass guesses a threshold from a sample, a second keeps what lies above it, and only that is sorted: exact, and
    many times cheaper than a top-k over all scores.
    """
    flats = [value.detach().reshape(-1).cpu() for value in values.values()]
    shapes = {name: value.shape for name, value in values.items()}
    total = sum(flat.numel() for flat in flats)
    count = min(count, total)
    stride = max(1, total // 1_000_000)
    sample = torch.cat([flat[::stride] for flat in flats]).sort(descending=True).values
    wanted = 1.05 * count
    while True:
        place = int(wanted / total * sample.numel()) + 8
        floor = sample[place] if place < sample.numel() else torch.tensor(float("-inf"))
        kept = [(flat >= floor).nonzero().squeeze(1) for flat in flats]
        if sum(index.numel() for index in kept) >= count:
            break
        wanted *= 1.5
    score = torch.cat([flat[index] for flat, index in zip(flats, kept, strict=True)])
    owner = torch.repeat_interleave(torch.arange(len(kept)), torch.tensor([index.numel() for index in kept]))
    order = score.sort(descending=True, stable=True).indices[:count]
    return Ranking(owner[order], torch.cat(kept)[order], shapes)


def select(ranking: Ranking, tau: int, rule: Rule) -> Selection:
    """Section 3.3 for one tau: the first `tau` of `ranking` are the marks (all of them when tau is larger)."""
    owner, flat = ranking.owner[:tau], ranking.flat[:tau]
    counts = torch.bincount(owner, minlength=len(ranking.shapes)).tolist()
    order = owner.argsort(stable=True)
    pieces = flat[order].split(counts)
    selection = Selection([], [], {}, ranking.shapes, rule, tau)
    for (name, shape), marks, piece in zip(ranking.shapes.items(), counts, pieces, strict=True):
        if marks >= rule.threshold(shape):
            (selection.vectors if len(shape) == 1 else selection.modules).append(name)
        elif not rule.structured_only:
            selection.entries[name] = piece.sort().values
    return selection
