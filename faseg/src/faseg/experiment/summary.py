"""The embedded experiment's result: rows and claims of metrics.json. No torch in here but for the costs.

Asserted is what follows from the construction, and that the baseline has learned; the order of the arms is reported.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import mean, stdev

from faseg.experiment.exactness import Exactness
from faseg.experiment.looking import PAIRS
from faseg.experiment.settings import ARMS, BASE, DFPQ, FASEG, HRCA, ExperimentConfig, SeedResult
from paperkit.results.flops import Counts
from paperkit.results.metrics import Claim, Metrics, Row

IOU, EARLY, STEADY = "mean IoU", "mean IoU of output 2", f"cosine of maps, {PAIRS[-1]}"
TOKENS, MACS, PARAMETERS = "key tokens", "multiply-adds", "parameters"
LEARNED = 40.0  # mean IoU in % that the baseline must reach


def summarise(
    results: Sequence[SeedResult],
    costs: Mapping[str, Counts],
    tokens: Mapping[str, int],
    omega_macs: Mapping[int, int],
    exact: Exactness,
    config: ExperimentConfig,
    seconds: float,
) -> Metrics:
    """Rows and claims.

    Args:
        costs: arm -> multiply-adds of one picture, and parameters.
        tokens: arm -> keys that all cross-attentions of one picture read.
        omega_macs: omega -> multiply-adds of one picture of `faseg`.
    """
    rows = [Row(arm, IOU, [r.ious[arm][-1] for r in results], "%") for arm in ARMS]
    rows += [Row(arm, EARLY, [r.ious[arm][2] for r in results], "%") for arm in ARMS]
    rows += [Row(arm, STEADY, [r.consistency[arm][-1] for r in results]) for arm in ARMS]
    rows += [Row(arm, TOKENS, [tokens[arm]]) for arm in ARMS]
    rows += [Row(arm, MACS, [costs[arm].macs / 1e6], "M") for arm in ARMS]
    rows += [Row(arm, PARAMETERS, [costs[arm].params]) for arm in ARMS]
    rows += [Row(f"{FASEG}, omega {o}", IOU, [r.omegas[o] for r in results], "%") for o in omega_macs]
    rows += [Row(f"{FASEG}, omega {o}", MACS, [macs / 1e6], "M") for o, macs in omega_macs.items()]
    return Metrics(
        "faseg",
        [r.seed for r in results],
        seconds,
        rows,
        [*exact_claims(exact, config.omega), learned_claim(results, config), *order_claims(results)],
        extra={
            "ious": {arm: [r.ious[arm] for r in results] for arm in ARMS},
            "consistency": {
                arm: [mean(c) for c in zip(*(r.consistency[arm] for r in results), strict=True)] for arm in ARMS
            },
        },
        threads=1,
    )


def exact_claims(exact: Exactness, omega: int) -> list[Claim]:
    """What holds by construction."""
    (whole, kept), (macs, few) = exact.key_tokens, exact.key_macs
    plain, folded = exact.largest
    return [
        Claim(
            "HRCA with all windows equals attention over the whole fine map",
            True,
            exact.all_windows < 1e-5,
            f"largest difference {exact.all_windows:.1e}",
        ),
        Claim(
            f"HRCA reads 1 in {omega} of the fine tokens, and its multiply-adds over keys fall by as much",
            True,
            whole == omega * kept and macs == omega * few,
            f"{kept} of {whole} tokens, {few:,} of {macs:,} multiply-adds",
        ),
        Claim(
            "the folded focus of DFPQ equals the elementwise sum",
            True,
            exact.focus < 1e-5,
            f"largest difference {exact.focus:.1e}",
        ),
        Claim(
            "the folded focus makes no tensor of queries x keys x channels",
            True,
            plain >= 8 * folded,
            f"largest tensor {folded:,} elements against {plain:,}: {plain / folded:.0f} times less",
        ),
    ]


def learned_claim(results: Sequence[SeedResult], config: ExperimentConfig) -> Claim:
    """That there is something to compare: asserted for runs of the full length."""
    reached = [r.ious[BASE][-1] for r in results]
    text = f"the baseline has learned: its mean IoU is above {LEARNED:.0f} %"
    return Claim(text, config.steps >= ExperimentConfig.steps, mean(reached) > LEARNED, f"{mean(reached):.1f} %")


def order_claims(results: Sequence[SeedResult]) -> list[Claim]:
    """Order of the arms over paired seeds, as it comes."""
    claims = []
    for arm in (FASEG, DFPQ, HRCA):
        for place, name in ((-1, "mean IoU"), (2, "mean IoU of output 2")):
            gains = [r.ious[arm][place] - r.ious[BASE][place] for r in results]
            claims.append(_above(f"{arm} is above {BASE} in {name}", gains, 1))
    for arm in (FASEG, DFPQ):
        gains = [r.consistency[arm][-1] - r.consistency[BASE][-1] for r in results]
        text = f"queries of {arm} look where they looked one group of layers before more than those of {BASE}"
        claims.append(_above(text, gains, 3))
    return claims


def _above(text: str, gains: Sequence[float], digits: int) -> Claim:
    """A reported claim that the mean gain is positive; a gain that is no number (no confident query) cannot tell."""
    error = f" ± {stdev(gains) / len(gains) ** 0.5:.{digits}f} (standard error)" if len(gains) > 1 else ""
    told = f"{mean(gains):+.{digits}f}{error}; per seed {', '.join(f'{x:+.{digits}f}' for x in gains)}"
    return Claim(text, False, mean(gains) > 0 if all(map(isfinite, gains)) else None, told)
