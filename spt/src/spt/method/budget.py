"""Meeting a budget (paper section 3.3): the released sweep over tau, and the exact tau from one ranking."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from paperkit.errors import UserError
from spt.method.allocation import Ranking, Rule, Selection, rank_scalars, select
from spt.method.sensitivity import check_values

RELEASED_BUDGETS = (1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05)  # million parameters
SWEEP_STEPS = range(1, 80)


def sweep_taus(unit: float = 1e6) -> list[int]:
    """The 79 taus of the released sweep, `ceil(i * 0.02 * unit)` in binary floating point (four are one larger)."""
    return [math.ceil(step * 0.02 * unit) for step in SWEEP_STEPS]


@dataclass(frozen=True)
class SweepPoint:
    """One tau of the sweep: marks, counted entries, parameters of modules and vectors, and how many of each."""

    tau: int
    sparse: int
    structured: int
    modules: int
    vectors: int
    any_entries_named: bool

    def total(self, fixed: int, unit: float) -> float:
        """Counted parameters in units, in the arithmetic of the released code.

        There the count of entries is a float32 tensor, so the quotient is float32, except when no parameter is below
        its threshold: then everything is a Python number.
        """
        if not self.any_entries_named:
            return (self.structured + fixed) / unit
        return float((torch.tensor(float(self.sparse)) + self.structured + fixed) / unit)

    def distance(self, budget: float, fixed: int, unit: float) -> float:
        """|total - budget| in the same arithmetic."""
        total = self.total(fixed, unit)
        return float((torch.tensor(total) - budget).abs()) if self.any_entries_named else abs(total - budget)


def sweep(ranking: Ranking, rule: Rule, unit: float = 1e6) -> list[SweepPoint]:
    """All points of the released sweep from one ranking (the released code ranks anew 79 times)."""
    shapes = list(ranking.shapes.values())
    thresholds = torch.tensor([rule.threshold(shape) for shape in shapes], dtype=torch.float64)
    costs = torch.tensor(
        [rule.cost(shape) if rule.structured_type != "none" or len(shape) == 1 else 0 for shape in shapes]
    )
    is_vector = torch.tensor([len(shape) == 1 for shape in shapes])
    points = []
    for tau in sweep_taus(unit):
        counts = torch.bincount(ranking.owner[:tau], minlength=len(shapes))
        whole = counts >= thresholds
        entries = 0 if rule.structured_only else int(counts[~whole].sum())
        points.append(
            SweepPoint(
                tau,
                entries,
                int(costs[whole].sum()),
                int((whole & ~is_vector).sum()),
                int((whole & is_vector).sum()),
                not rule.structured_only and not bool(whole.all()),
            )
        )
    return points


def official_selections(
    values: dict[str, Tensor], rule: Rule, unit: float = 1e6, budgets: tuple[float, ...] = RELEASED_BUDGETS
) -> dict[float, tuple[SweepPoint, Selection]]:
    """The released search: for each budget the last tau whose total is not farther away than the best before it.

    The best starts at a total of 0, so a budget is missing from the answer when no total lies in [0, 2 budget].
    """
    check_values(values)
    ranking = rank_scalars(values, max(sweep_taus(unit)))
    best: dict[float, SweepPoint] = {}
    for point in sweep(ranking, rule, unit):
        for budget in budgets:
            # The comparison is float32 whenever one side is a tensor of the released code.
            before = best[budget].distance(budget, rule.fixed, unit) if budget in best else abs(0 - budget)
            now = point.distance(budget, rule.fixed, unit)
            exact = not point.any_entries_named and (budget not in best or not best[budget].any_entries_named)
            if now <= before if exact else torch.tensor(now) <= torch.tensor(before):
                best[budget] = point
    return {budget: (point, select(ranking, point.tau, rule)) for budget, point in best.items()}


def totals(ranking: Ranking, rule: Rule) -> Tensor:
    """Counted parameters after each mark of `ranking`, int64 [T]: the staircase total(tau) for tau = 1..T."""
    shapes = list(ranking.shapes.values())
    order = ranking.owner.argsort(stable=True)
    sizes = torch.bincount(ranking.owner, minlength=len(shapes))
    starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    count = torch.empty_like(ranking.owner)  # how many marks the owner has, this one included
    count[order] = torch.arange(1, len(ranking) + 1) - starts
    thresholds = torch.tensor([rule.threshold(shape) for shape in shapes], dtype=torch.float64)[ranking.owner]
    costs = torch.tensor([rule.cost(s) if math.isfinite(rule.threshold(s)) else 0 for s in shapes])[ranking.owner]
    below = torch.zeros_like(count) if rule.structured_only else count
    before = torch.zeros_like(count) if rule.structured_only else count - 1
    cost_now = torch.where(count >= thresholds, costs, below)
    cost_before = torch.where((count - 1 >= thresholds) & (count > 1), costs, before)
    return (cost_now - cost_before).cumsum(0) + rule.fixed


def exact_selection(values: dict[str, Tensor], rule: Rule, budget: int) -> Selection:
    """The selection that spends the most without going over `budget` counted parameters.

    The total changes only at the marks, so one ranking and running counts give the total of every tau at once.

    Raises:
        UserError: for a budget below the class token and one module (or one entry), or above what the model has.
    """
    check_values(values)
    check_budget({name: value.shape for name, value in values.items()}, rule, budget)
    everything = sum(value.numel() for value in values.values())
    # Totals never fall while a module costs at least the marks it replaces, so the first excess ends the search.
    rising = rule.alpha >= 1 and rule.beta >= 1
    reach = min(everything, 2 * budget) if rising else everything
    while True:
        ranking = rank_scalars(values, reach)
        spent = totals(ranking, rule)
        if reach == everything or int(spent[-1]) > budget:
            break
        reach = min(everything, 4 * reach)
    fits = spent <= budget
    if not bool(fits.any()):
        raise UserError(f"budget {budget} is below the cheapest selection, {int(spent.min())} parameters")
    tau = int(torch.where(fits, spent, -1).argmax()) + 1
    return select(ranking, tau, rule)


def check_budget(shapes: dict[str, torch.Size], rule: Rule, budget: int) -> None:
    """Refuses a budget that cannot be met.

    Raises:
        UserError: naming the budget and the smallest or largest one that makes sense.
    """
    matrices = [rule.cost(shape) for shape in shapes.values() if len(shape) == 2]
    smallest = 1 if rule.structured_type == "none" else min(matrices)
    if budget < rule.fixed + smallest:
        what = (
            "one entry" if rule.structured_type == "none" else f"one {rule.structured_type} module of rank {rule.rank}"
        )
        raise UserError(
            f"budget {budget} is smaller than {what} and the class token, {rule.fixed} + {smallest} parameters"
            + (
                ""
                if rule.structured_type == "none"
                else "; lower the rank, or structured_type none tunes single entries"
            )
        )
    largest = sum(shape.numel() for shape in shapes.values()) + rule.fixed
    if budget > largest:
        raise UserError(f"budget {budget} is larger than the model, {largest} parameters can be tuned")
