"""Part A: what the calibrated variance does to the sampler of Gaussian data, in closed form; rows and claims."""

from paperkit.results.metrics import Claim, Row
from ptq4dm.method.gaussian_check import CASES, final_variances

EXACT = 1e-9


def measure_gaussian() -> tuple[list[Row], list[Claim]]:
    """The variance of samples in each case of the method's table, by arm, and what is asserted of it."""
    found = [final_variances(case) for case in CASES]
    rows = [
        Row(arm, f"A variance: {case.name}", [value])
        for case, one in zip(CASES, found, strict=True)
        for arm, value in (
            ("float sampler", one.exact),
            ("quantised, not calibrated", one.uncalibrated),
            ("calibrated, official direction", one.official),
            ("calibrated, scheduled direction", one.scheduled),
        )
    ]
    away = [[abs(value - one.exact) for value in (one.scheduled, one.uncalibrated, one.official)] for one in found]
    orders = [scheduled < uncalibrated < official for scheduled, uncalibrated, official in away]
    text = "A: distance to the float sampler's variance: scheduled direction < not calibrated < official direction"
    claims = [Claim(text, True, all(orders), f"in {sum(orders)} of {len(CASES)} cases")]
    whole = [distances[0] for one, distances in zip(found, away, strict=True) if one.zero_steps == 0]
    text = "A: with the scheduled direction it is the float sampler's, where no step has nothing left to add"
    detail = f"{len(whole)} cases, largest difference {max(whole):.1g}"
    return rows, [*claims, Claim(text, True, max(whole) < EXACT, detail)]
