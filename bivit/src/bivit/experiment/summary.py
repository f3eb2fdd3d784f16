"""The embedded experiment's result: rows and claims of metrics.json.

Asserted is what was safe in an earlier prototype and held here on seeds 6 to 10 and 1 to 5: SAB above naive attention
by 5.7 and 7.3 points in W1A32, by 18.5 and 22.6 in W1A1; above BiBERT's rule by 2.3 and 4.4, asserted of five seeds
only. A learned scale above the mean one was 0.5 (-1.3 to 2.0) on seeds 6 to 10: it is reported, as is all else. All of
it depends on the teacher's start (see `digit_transformer`): from timm's own the margins over naive attention fail.
"""

from collections.abc import Mapping, Sequence
from statistics import mean

from bivit.experiment import settings as names
from bivit.experiment.settings import A1, A32, FLOAT_MLP, TEACHER, SeedResult, student
from bivit.figures.active_sets import BIT_START, BOOL, ONES, OPTIMAL, RULES, SAB
from paperkit.results.metrics import Claim, Metrics, Row

PAIRS, SOME, MANY = 2, 3, 5  # seeds for which the claims on means of pairs are asserted, the wider the spread the more
ACCURACY, LONG_ACCURACY = "B digits: accuracy", "C 64 tokens: accuracy"
OPS, BYTES = "B digits: operations", "B digits: bytes"


def summarise(results: Sequence[SeedResult], costs: Mapping[str, tuple[float, float]], seconds: float) -> Metrics:
    """Rows and claims of all parts.

    Args:
        costs: teacher and students -> operations of one image as the paper counts them; bytes, of students packed.
    """
    rows = [Row(rule, "A rows: scaled error", [r.scaled_errors[rule] for r in results]) for rule in RULES]
    rows += [Row(rule, "A rows: error without scale", [r.raw_errors[rule] for r in results]) for rule in RULES]
    rows += [Row(rule, "A rows: active entries", [100 * r.active[rule] for r in results], "%") for rule in RULES]
    rows += [Row("T* on the row maximum", "A rows: slope beta", [r.beta for r in results])]
    rows += [Row("T* on the row maximum", "A rows: correlation", [r.correlation for r in results])]
    arms = list(results[0].accuracies)
    rows += [Row(arm, ACCURACY, [r.accuracies[arm] for r in results], "%") for arm in arms]
    rows += [Row(arm, OPS, [costs[arm][0] / 1e6], "M") for arm in arms]
    rows += [Row(arm, BYTES, [costs[arm][1] / 1e3], "kB") for arm in arms]
    long = [result for result in results if result.long]
    if long:
        rows += [Row(arm, LONG_ACCURACY, [r.long[arm] for r in long], "%") for arm in long[0].long]
    return Metrics(
        "bivit",
        [result.seed for result in results],
        seconds,
        rows,
        [*row_claims(results), *student_claims(results), *cost_claims(costs), *long_claims(long)],
        extra={
            "curves": {arm: [r.curves[arm] for r in results] for arm in arms},
            "long_seeds": [result.seed for result in long],
        },
        threads=1,
    )


def row_claims(results: Sequence[SeedResult]) -> list[Claim]:
    """Part A."""
    order = (OPTIMAL, SAB, BOOL, ONES)

    def ordered(errors: Mapping[str, float]) -> bool:
        best, sab, bools, ones = (errors[rule] for rule in order)
        return best <= sab < bools < ones

    held = all(ordered(r.scaled_errors) for r in results)
    means = ", ".join(f"{mean(r.scaled_errors[rule] for r in results):.3f}" for rule in order)
    text = "A: scaled error of a row: optimal <= SAB < bool < all ones in every seed"
    claims = [Claim(text, True, held, means)]
    lowest = min(r.correlation for r in results)
    text = "A: the optimal threshold follows the row's maximum, correlation above 0.9 in every seed"
    claims.append(Claim(text, True, lowest > 0.9, f"lowest {lowest:.3f}"))
    betas = ", ".join(f"{r.beta:.2f}" for r in results)
    claims.append(
        Claim("A: the fitted beta is the paper's 0.25", False, all(0.2 < r.beta < 0.3 for r in results), betas)
    )
    raw = [mean(r.raw_errors[rule] for r in results) for rule in (SAB, BIT_START)]
    text = "A: without a scale SAB's error is below that of BiT's fixed threshold"
    return [*claims, Claim(text, False, raw[0] < raw[1], f"{raw[0]:.3f} and {raw[1]:.3f}")]


def student_claims(results: Sequence[SeedResult]) -> list[Claim]:
    """Part B: paired differences of students, means over the seeds."""
    count = len(results)

    def above(ours: str, theirs: str, margin: float, asserted: bool) -> list[Claim]:
        if not all({ours, theirs} <= set(r.accuracies) for r in results):
            return []
        pairs = [r.accuracies[ours] - r.accuracies[theirs] for r in results]
        by = f"more than {margin:g} points " if margin else ""
        detail = f"{mean(pairs):+.1f} points; per seed {', '.join(f'{x:+.1f}' for x in pairs)}"
        text = f"B: {ours} is {by}above {theirs}, mean of paired seeds"
        return [Claim(text, asserted, mean(pairs) > margin, detail)]

    ours, naive = names.SAB_PWS, names.NAIVE
    claims = [
        *above(student(ours, A32), student(naive, A32), 2, count >= SOME),
        *above(student(ours, A1), student(naive, A1), 10, count >= PAIRS),
        *above(student(ours, A32), student(names.MEAN, A32), 0, False),
        *above(student(ours, A32), student(names.BIBERT, A32), 0, count >= MANY),
    ]
    best = [max((v, k) for k, v in r.accuracies.items() if k != TEACHER) for r in results]
    held = all(r.accuracies[TEACHER] > value for r, (value, _) in zip(results, best, strict=True))
    gaps = ", ".join(f"{r.accuracies[TEACHER] - value:+.1f}" for r, (value, _) in zip(results, best, strict=True))
    claims.append(Claim("B: the teacher is above every student in every seed", True, held, f"by {gaps} points"))
    for first, second in (
        (student(ours, A32), student(ours, A1)),
        (student(ours, A1), student(names.BIBERT, A1)),
        (student(ours, A32), student(names.BOOL_PWS, A32)),
        (student(ours, A1), student(names.BOOL_PWS, A1)),
        (student(names.CLB, A32), student(ours, A32)),
        (student(names.CLB, A1), student(ours, A1)),
        (student(names.TWO_STEPS, A32), student(ours, A32)),
        (student(ours, A32), student(names.PAST, A32)),
        (student(names.COUNT, A1), student(ours, A1)),
        (student(ours, A32), student(names.BIT, A32)),
        (student(ours, A1), student(names.BIT, A1)),
    ):
        claims += above(first, second, 0, False)
    return claims


def cost_claims(costs: Mapping[str, tuple[float, float]]) -> list[Claim]:
    """Operations and bytes of the SAB students beside the teacher's."""
    teacher, a32, a1 = (costs.get(arm) for arm in (TEACHER, *(student(names.SAB_PWS, mlp) for mlp in (A32, A1))))
    if teacher is None or a32 is None or a1 is None:
        return []
    held = a1[0] < a32[0] < teacher[0] and a1[1] == a32[1] < teacher[1]
    text = "B: operations fall from the teacher to W1A32 to W1A1; bytes of both students are equal and below"
    ops, sizes = zip(teacher, a32, a1, strict=True)
    detail = f"{', '.join(f'{x:,.0f}' for x in ops)} OPs; {', '.join(f'{x:,.0f}' for x in sizes)} bytes"
    return [Claim(text, True, held, detail)]


def long_claims(results: Sequence[SeedResult]) -> list[Claim]:
    """Part C, reported."""
    claims = []
    for mlp, rival in ((FLOAT_MLP, names.BOOL_PWS), (FLOAT_MLP, names.NAIVE), (A32, names.BOOL_PWS)):
        ours, theirs = student(names.SAB_PWS, mlp), student(rival, mlp)
        pairs = [r.long[ours] - r.long[theirs] for r in results]
        if pairs:
            detail = f"{mean(pairs):+.1f} points; per seed {', '.join(f'{x:+.1f}' for x in pairs)}"
            claims.append(Claim(f"C: {ours} is above {theirs}", False, mean(pairs) > 0, detail))
    return claims
