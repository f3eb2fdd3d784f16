"""What the figures count in sensitivities: top marks and their overlap, shares by place, concentration, total(tau)."""

import math

import torch
from torch import Tensor

from spt.method.allocation import Rule, rank_scalars
from spt.method.budget import totals


def top_marks(values: dict[str, Tensor], count: int) -> Tensor:
    """Positions (count,) of the largest entries in the concatenation of all tensors."""
    ranking = rank_scalars(values, count)
    sizes = torch.tensor([value.numel() for value in values.values()])
    return (sizes.cumsum(0) - sizes)[ranking.owner] + ranking.flat


def jaccard(first: Tensor, second: Tensor) -> float:
    """Size of the intersection of two sets of positions over the size of their union."""
    both = int(torch.isin(first, second).sum())
    return both / (first.numel() + second.numel() - both)


def share_by_place(values: dict[str, Tensor], count: int) -> dict[str, float]:
    """`block|operation` -> share (%) of the matrix's entries among the most sensitive `count` entries of the model."""
    ranking = rank_scalars(values, count)
    counts = torch.bincount(ranking.owner, minlength=len(values)).tolist()
    shares = {}
    blocks: list[str] = []
    for (name, value), marked in zip(values.items(), counts, strict=True):
        if value.ndim == 2:
            *_, operation, _ = name.split(".")
            block = block_of(name)
            if block not in blocks:
                blocks.append(block)
            shares[f"{blocks.index(block)}|{operation}"] = 100 * marked / value.numel()
    return shares


def block_of(name: str) -> str:
    """`layers.2.blocks.1.attn.q.weight` -> `layers.2.blocks.1`: everything up to the last number."""
    words = name.split(".")
    last = max((place for place, word in enumerate(words) if word.isdigit()), default=0)
    return ".".join(words[: last + 1])


def concentration(values: dict[str, Tensor]) -> list[tuple[float, float]]:
    """(share of the entries, share of all sensitivity in them) in percent, the most sensitive entries first.

    About 100 points, evenly spaced on a logarithmic axis.
    """
    flat = torch.cat([value.flatten() for value in values.values()])
    top = flat.sort(descending=True).values.double().cumsum(0) / flat.double().sum()
    places = torch.logspace(0, math.log10(top.numel()), 100, dtype=torch.float64).long().clamp(1, top.numel()).unique()
    return [(100 * place / flat.numel(), 100 * float(top[place - 1])) for place in places.tolist()]


def staircase(values: dict[str, Tensor], rule: Rule, largest: int) -> list[tuple[int, int]]:
    """(tau, counted parameters), about 300 points up to tau = `largest`."""
    spent = totals(rank_scalars(values, largest), rule).tolist()
    step = max(1, len(spent) // 300)
    return [(tau + 1, total) for tau, total in enumerate(spent) if tau % step == 0]
