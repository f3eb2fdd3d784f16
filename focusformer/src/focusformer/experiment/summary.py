"""The embedded experiment's result: rows and claims of metrics.json.

Asserted are a margin of one call over one random architecture, that the sampler's architectures fit their budgets, and
what each choice cost in evaluations. All else is shown with its sign: whether focusing raises the accuracy of a
searched supernet is uncertain at this size.
"""

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from focusformer.experiment import settings as names
from focusformer.experiment.settings import ARMS, BUDGETS, COST, FOCUS, UNIFORM, Found, SeedResult
from focusformer.figures.ranks import kendall_tau
from focusformer.method.search import evaluations_to_reach
from paperkit.results.metrics import Claim, Metrics, Row

ACCURACY, LOSS, HELD_OUT = "test accuracy", "test loss", "held-out loss"
EVALUATED, DRAWN, SECONDS = "evaluations", "draws", "seconds"
ENTROPY = "entropy of a choice"
MARGIN = 1.0  # points of F1 over U1
PAIRS = 2  # seeds from which on it is asserted


def budget_name(number: int) -> str:
    """The name of a budget in metrics and figures."""
    return f"budget {number + 1}"


def summarise(results: Sequence[SeedResult], evaluations: int, seconds: float) -> Metrics:
    """Rows and claims.

    Args:
        evaluations: of E and random search for each budget.
    """
    rows = []

    def add(metric: str, unit: str, of: Callable[[Found], float], total: Callable[[list[float]], float]) -> None:
        for arm in ARMS:
            values = [[of(found) for found in r.arms[arm]] for r in results]
            rows.append(Row(arm, metric, [total(line) for line in values], unit))

    add(ACCURACY, "%", lambda found: found.accuracy, mean)
    for number in range(BUDGETS):
        rows += [
            Row(arm, f"{ACCURACY}, {budget_name(number)}", _of(results, arm, number, "accuracy"), "%") for arm in ARMS
        ]
    add(LOSS, "", lambda found: found.loss, mean)
    for number in range(BUDGETS):
        rows += [Row(arm, f"{LOSS}, {budget_name(number)}", _of(results, arm, number, "loss")) for arm in ARMS]
    add(HELD_OUT, "", lambda found: found.held_out, mean)
    add(EVALUATED, "", lambda found: found.evaluations, sum)
    add(DRAWN, "", lambda found: found.draws, sum)
    for number in range(BUDGETS):
        rows.append(Row(FOCUS, f"{ENTROPY}, {budget_name(number)}", [r.entropies[number] for r in results]))
        rows.append(Row(COST, budget_name(number), [r.budgets[number] for r in results], "MACs"))
    if results[0].alone:
        rows.append(Row(UNIFORM, "Kendall's tau, inherited and alone", [_tau(results[0])]))
    rows += [Row(name, SECONDS, [r.times[name] for r in results], "s") for name in results[0].times]
    first = results[0]
    return Metrics(
        "focusformer",
        [r.seed for r in results],
        seconds,
        rows,
        [*asserted_claims(results, evaluations), *reported_claims(results)],
        extra={
            "cost": COST,
            "budgets": first.budgets,
            "traces": first.traces,
            "sampled": first.sampled,
            "sampler": first.sampler,
            "policy": first.policy,
            "alone": first.alone,
            "points": [{arm: [[f.cost, f.accuracy] for f in r.arms[arm]] for arm in ARMS} for r in results],
            "architectures": [{arm: [f.architecture for f in r.arms[arm]] for arm in ARMS} for r in results],
        },
        threads=1,
    )


def asserted_claims(results: Sequence[SeedResult], evaluations: int) -> list[Claim]:
    """What a test relies on."""
    pairs = _differences(results, names.F1, names.U1, "accuracy")
    text = (
        f"one call (F1) is {MARGIN:g} point or more above one random architecture that fits (U1), mean of paired seeds"
    )
    claims = [Claim(text, len(results) >= PAIRS, mean(pairs) >= MARGIN, _told(pairs))]
    focused = [found for r in results for arm in (names.F1, names.F30) for found in r.arms[arm]]
    misses = sum(found.misses for found in focused)
    feasible = min(min(r.sampler["feasible"]) for r in results)
    text = "every architecture that the sampler gives fits its budget, in training and in the search"
    told = f"{misses:g} misses in {sum(found.draws for found in focused):g} draws; lowest share {feasible:.2f}"
    claims.append(Claim(text, True, misses == 0 and feasible == 1, told))
    counts = {
        arm: {sum(found.evaluations for found in r.arms[arm]) for r in results}
        for arm in (names.F1, names.U30, names.EVOLUTION)
    }
    wanted = {names.F1: BUDGETS, names.U30: BUDGETS * names.DRAWS, names.EVOLUTION: BUDGETS * evaluations}
    held = all(counts[arm] == {number} for arm, number in wanted.items())
    told = ", ".join(f"{arm} {', '.join(map(str, sorted(found)))}" for arm, found in counts.items())
    text = (
        f"evaluations: {wanted[names.F1]} of F1 against {wanted[names.U30]} of U30 and {wanted[names.EVOLUTION]} of E"
    )
    return [*claims, Claim(text, True, held, told)]


def reported_claims(results: Sequence[SeedResult]) -> list[Claim]:
    """What is shown with its sign, and how soon other searches reach the loss of one call."""
    claims = []
    for ours, theirs in (
        (names.F1, names.U30),
        (names.F1, names.RANDOM),
        (names.F1, names.EVOLUTION),
        (names.F30, names.U30),
        (names.F30, names.EVOLUTION),
        (names.F1, names.FURTHER1),
        (names.F1, names.FURTHER30),
        (names.F30, names.FURTHER30),
        (names.EVOLUTION, names.RANDOM),
    ):
        points, losses = (_differences(results, ours, theirs, what) for what in ("accuracy", "loss"))
        detail = f"{_told(points)}; loss {mean(losses):+.3f}"
        claims.append(Claim(f"{ours} is above {theirs} in accuracy", False, mean(points) > 0, detail))
    for search in (names.RANDOM, names.EVOLUTION):
        reached = [reached_by(r, search) for r in results]
        told = "; ".join(", ".join("not reached" if n is None else str(n) for n in line) for line in reached)
        few = all(n is None or n > 1 for line in reached for n in line)
        text = f"{search} on the uniform supernet needs more evaluations than one to the held-out loss of F1"
        claims.append(Claim(text, False, few, f"by budget: {told}"))
    return claims


def reached_by(result: SeedResult, search: str) -> list[int | None]:
    """For each budget the evaluations after which a search has the held-out loss of F1; None if it never has."""
    goals = [found.held_out for found in result.arms[names.F1]]
    return [
        evaluations_to_reach([-loss for loss in trace], -goal)
        for trace, goal in zip(result.traces[search], goals, strict=True)
    ]


def arm_table(metrics: Metrics) -> tuple[list[list[Any]], list[str], str]:
    """Rows, columns and title of the table that a reader wants: an arm a line."""
    seeds = len(metrics.seeds)
    rows = []
    for arm, meaning in ARMS.items():
        budgets = [f"{metrics.row(arm, f'{ACCURACY}, {budget_name(i)}').mean:.1f}" for i in range(BUDGETS)]
        numbers = [metrics.row(arm, metric).mean for metric in (ACCURACY, LOSS, EVALUATED, DRAWN)]
        cells = [f"{numbers[0]:.1f}", *budgets, f"{numbers[1]:.3f}", f"{numbers[2]:.0f}", f"{numbers[3]:.0f}"]
        rows.append([arm, *cells, meaning])
    columns = ["arm", "accuracy, %", *(str(i + 1) for i in range(BUDGETS)), "loss", EVALUATED, DRAWN, "what it is"]
    return rows, columns, f"Test accuracy by budget, evaluations and draws for all of them; means of {seeds} seeds"


def _of(results: Sequence[SeedResult], arm: str, number: int, what: str) -> list[float]:
    return [getattr(r.arms[arm][number], what) for r in results]


def _differences(results: Sequence[SeedResult], ours: str, theirs: str, what: str) -> list[float]:
    def score(result: SeedResult, arm: str) -> float:
        return mean(getattr(found, what) for found in result.arms[arm])

    return [score(r, ours) - score(r, theirs) for r in results]


def _told(pairs: Sequence[float]) -> str:
    return f"{mean(pairs):+.1f} points; per seed {', '.join(f'{x:+.1f}' for x in pairs)}"


def _tau(result: SeedResult) -> float:
    return kendall_tau(result.alone["inherited"], result.alone["alone"])
