"""The embedded experiment's result: rows and claims of metrics.json. No torch in here.

Asserted is what came out in every run that was made; the rest is reported as it comes, negative results included.
"""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from ecoformer.experiment import settings as names
from ecoformer.experiment.settings import BINARY, ECO, EXTENSIONS, PERFORMER, SHARED, SIGN, ExperimentConfig, SeedResult
from paperkit.results.metrics import Claim, Metrics, Row

MARGIN = 2.5  # points of accuracy that EcoFormer may lose on the digits
SEEDS = 5  # for which part B's claim is made


def summarise(
    results: Sequence[SeedResult],
    energies: Mapping[str, Mapping[str, float]],
    config: ExperimentConfig,
    seconds: float,
) -> Metrics:
    """Rows and claims of all three parts."""
    majority = [result for result in results if result.majority]
    rows = [Row(c, "A label error", [r.errors[c] for r in results]) for c in names.CODES]
    rows += [Row(c, "A pairs ranked rightly", [r.aucs[c] for r in results], "%") for c in names.CODES]
    rows += [Row(arm, "B digits: accuracy", [r.digits[arm] for r in results], "%") for arm in config.arms("digits")]
    if majority:
        arms = config.arms("majority")
        rows += [Row(a, "C majority: accuracy", [r.majority[a] for r in majority], "%") for a in arms]
    rows += [Row(arm, f"energy: {what}", [nj], "nJ") for what, arms in energies.items() for arm, nj in arms.items()]
    return Metrics(
        "ecoformer",
        [result.seed for result in results],
        seconds,
        rows,
        [*similarity_claims(results), *digit_claims(results, energies), *majority_claims(majority)],
        extra={
            "distances": results[0].distances,
            "fits": results[0].fits,
            "sweep": results[0].sweep,
            "majority_seeds": [result.seed for result in majority],
        },
        threads=1,
    )


def similarity_claims(results: Sequence[SeedResult]) -> list[Claim]:
    """Part A."""

    def below(codes: str, rival: str) -> tuple[bool, str]:
        lower = sum(r.errors[codes] < r.errors[rival] for r in results)
        ours, theirs = (mean(r.errors[name] for r in results) for name in (codes, rival))
        return lower == len(results), f"{ours:.3f} and {theirs:.3f}, lower in {lower} of {len(results)} seeds"

    claims = []
    for codes in (names.KSH_LARGE, names.KSH_SMALL):
        for rival in (names.KSH_RANDOM, names.LSH):
            held, detail = below(codes, rival)
            text = f"A: {codes}: label error below that of {rival} in every seed"
            claims.append(Claim(text, True, held, detail))
    for codes, rival in (
        (names.KSH_ADAM, names.LSH),
        (names.KSH_LARGE, names.COORDINATES),
        (names.KSH_OFFICIAL, names.KSH_RANDOM),
        (names.KSH_OFFICIAL, names.LSH),
    ):
        held, detail = below(codes, rival)
        claims.append(Claim(f"A: {codes}: label error below that of {rival} in every seed", False, held, detail))
    return claims


def digit_claims(results: Sequence[SeedResult], energies: Mapping[str, Mapping[str, float]]) -> list[Claim]:
    """Part B, and the energy ledger."""
    claims = []
    if all({SHARED, ECO} <= set(r.digits) for r in results):
        lost = [r.digits[SHARED] - r.digits[ECO] for r in results]
        text = f"B: EcoFormer loses at most {MARGIN} points to shared-QK softmax, mean of paired seeds"
        detail = f"{mean(lost):.2f} points; per seed {', '.join(f'{x:.1f}' for x in lost)}"
        claims.append(Claim(text, len(results) >= SEEDS, mean(lost) <= MARGIN, detail))
    attention, network = energies["attention at 3136 tokens"], energies["whole network at 3136 tokens"]
    ratio, whole = attention[SHARED] / attention[ECO], network[SHARED] / network[ECO]
    text = "B: at 3136 tokens the attention of the same network takes less than a tenth of softmax's energy"
    claims.append(Claim(text, True, ratio > 10, f"softmax / EcoFormer {ratio:.0f}, of the whole network {whole:.1f}"))
    small = energies["attention at 16 tokens"]
    text = "B: at its own 16 tokens the attention takes less energy than softmax's"
    claims.append(
        Claim(text, False, small[ECO] < small[SHARED], f"softmax / EcoFormer {small[SHARED] / small[ECO]:.2f}")
    )
    ours, full, reduced = energies["PVTv2-B0 at 224 px"].values()
    text = "PVTv2-B0 saves 73 % of the energy against full attention"
    detail = f"{100 - 100 * ours / full:.1f} %; against the unmodified network (SRA) {100 - 100 * ours / reduced:.1f} %"
    return [*claims, Claim(text, True, round(100 - 100 * ours / full) == 73, detail)]


def majority_claims(results: Sequence[SeedResult]) -> list[Claim]:
    """Part C. Extensions are reported."""
    if not results:
        return []
    arms = list(results[0].majority)
    of = {arm: mean(r.majority[arm] for r in results) for arm in arms}
    claims, binary = [], [arm for arm in BINARY if arm in of]
    if SHARED in of and binary:
        held = all(r.majority[SHARED] > r.majority[arm] > 60 for r in results for arm in binary)
        low, high = min(of[arm] for arm in binary), max(of[arm] for arm in binary)
        text = "C: shared-QK softmax is above every binary form, and each of those above 60 %, in every seed"
        claims.append(Claim(text, True, held, f"{of[SHARED]:.1f} and {low:.1f} to {high:.1f}"))
    for arm, rival in ((ECO, names.MEAN), (ECO, SIGN), (ECO, PERFORMER), (ECO, names.RANDOM), (names.WORKING, ECO)):
        claims += _above(of, arm, rival)
    for arm in EXTENSIONS:
        claims += _above(of, arm, ECO)
    if (tried := [arm for arm in EXTENSIONS if arm in of]) and {SIGN, PERFORMER} <= set(of):
        best = max(tried, key=lambda arm: of[arm])
        text = "C: the best extension reaches sign and Performer"
        detail = f"{best} {of[best]:.1f}; sign {of[SIGN]:.1f}, Performer {of[PERFORMER]:.1f}"
        claims.append(Claim(text, False, of[best] >= max(of[SIGN], of[PERFORMER]), detail))
    return claims


def _above(of: Mapping[str, Any], arm: str, rival: str) -> list[Claim]:
    if arm not in of or rival not in of:
        return []
    return [Claim(f"C: {arm} is above {rival}", False, of[arm] > of[rival], f"{of[arm]:.1f} and {of[rival]:.1f}")]
