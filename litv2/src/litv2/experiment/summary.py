"""The embedded experiment's result: rows and claims of metrics.json. No torch in here."""

from collections.abc import Sequence
from typing import Any

from litv2.experiment.settings import MSA, ExperimentConfig, SeedResult, arm_name
from paperkit.results.metrics import Claim, Metrics, Row

BLOCKS = (1, 2)


def summarise(
    results: Sequence[SeedResult],
    costs: Sequence[dict[str, Any]],
    config: ExperimentConfig,
    seconds: float,
) -> Metrics:
    """Rows and claims of all three parts."""
    return Metrics(
        paper="litv2",
        seeds=[result.seed for result in results],
        seconds=seconds,
        rows=accuracy_rows(results, config) + share_rows(results) + cost_rows(costs),
        claims=cost_claims(costs) + marker_claims(results) + frequency_claims(results),
        extra={
            "costs": list(costs),
            "profiles": [result.profiles for result in results],
            "alphas": list(config.alphas),
        },
        threads=1,
    )


def accuracy_rows(results: Sequence[SeedResult], config: ExperimentConfig) -> list[Row]:
    """Test accuracy of parts B and C, and what part B has beside it."""
    rows = [Row(arm, "B two markers: accuracy", [r.markers[arm] for r in results], "%") for arm in config.arms]
    rows += [
        Row(arm, "B two markers: pairs ranked rightly (chance 50)", [r.marker_rankings[arm] for r in results], "%")
        for arm in config.arms
    ]
    rows += [
        Row(arm, "B two markers: cross-entropy (chance .693)", [r.marker_losses[arm] for r in results])
        for arm in config.arms
    ]
    return rows + [Row(arm, "C digits: accuracy", [r.digits[arm] for r in results], "%") for arm in config.arms]


def share_rows(results: Sequence[SeedResult]) -> list[Row]:
    """Spectra of part C."""
    rows = []
    for state in ("initial", "trained"):
        for branch in results[0].shares[state]:
            values = [100 * r.shares[state][branch] for r in results]
            rows.append(Row(branch, f"C energy beyond 0.25 cycles/token, {state}", values, "%"))
    for branch in results[0].band_over_dc["trained"]:
        values = [r.band_over_dc["trained"][branch] for r in results]
        rows.append(Row(branch, "C log amplitude of that band minus DC, trained", values))
    return rows


def cost_rows(costs: Sequence[dict[str, Any]]) -> list[Row]:
    """Part A: multiply-adds, parameters, kept activations and time of each layer."""
    rows = []
    for c in costs:
        where = f"A {c['side']}x{c['side']} tokens, D {c['dim']}, batch {c['batch']}"
        rows.append(Row(c["name"], f"{where}: multiply-adds an image", [c["macs"] / 1e6], "M"))
        rows.append(Row(c["name"], f"{where}: parameters", [c["params"] / 1e6], "M"))
        rows.append(Row(c["name"], f"{where}: kept for backward", [c["kept"] / 2**20], "MiB"))
        if c["seconds"] is not None:
            rows.append(Row(c["name"], f"{where}: time", [1e3 * c["seconds"]], "ms"))
            rows.append(Row(c["name"], f"{where}: time over HiLo .9", [c["over_hilo"]], "x"))
    return rows


def cost_claims(costs: Sequence[dict[str, Any]]) -> list[Claim]:
    """What must hold of part A, and what is only reported: rivals that are close on a noisy clock."""
    at = {(c["name"], c["side"]): c for c in costs}
    macs = [at[name, 14]["macs"] for name in ("HiLo .9", "SRA 2", "window 7", "MSA (SDPA)")]
    text = "At 14x14 tokens multiply-adds rise from HiLo over SRA and window to MSA"
    detail = ", ".join(f"{m / 1e6:.1f} M" for m in macs)
    claims = [Claim(text, True, macs == sorted(macs) and len(set(macs)) == 4, detail)]
    sides = sorted({c["side"] for c in costs})
    ratios = {name: [at[name, side]["over_hilo"] for side in sides] for name in {c["name"] for c in costs}}
    if ratios["MSA (SDPA)"][0] is None:
        return claims
    for name in ("MSA (SDPA)", "MSA (explicit)"):
        shown = ", ".join(f"{r:.2f}x at {s}x{s}" for r, s in zip(ratios[name], sides, strict=True))
        claims.append(Claim(f"HiLo is faster than {name} at every grid", True, min(ratios[name]) > 1, shown))
        grows = ratios[name][-1] > ratios[name][0]
        claims.append(Claim(f"The gap between HiLo and {name} grows with the grid", True, grows, shown))
    for name in ("SRA 2", "window 7", "XCA"):
        shown = ", ".join(f"{r:.2f}x at {s}x{s}" for r, s in zip(ratios[name], sides, strict=True))
        claims.append(Claim(f"HiLo is faster than {name} at every grid", False, min(ratios[name]) > 1, shown))
    return claims


def marker_claims(results: Sequence[SeedResult]) -> list[Claim]:
    """Part B: a layer whose attention stays inside windows cannot compare two places."""
    none, half = arm_name(0), arm_name(0.5)
    triples = [(r.markers[none], r.markers[half], r.markers[MSA]) for r in results]
    shown = "alpha 0 / .5 / MSA by seed: " + ", ".join(f"{a:.1f} / {b:.1f} / {c:.1f} %" for a, b, c in triples)
    losses = [r.marker_losses[none] for r in results]
    pairs = [(r.marker_rankings[none], r.marker_rankings[half]) for r in results]
    ranked = "alpha 0 / .5 by seed: " + ", ".join(f"{a:.1f} / {b:.1f} %" for a, b in pairs)
    without, with_half = (sum(t[i] for t in triples) / len(triples) for i in (0, 1))
    return [
        Claim("Without Lo-Fi heads the test cross-entropy is at chance: above 0.68 nats on every seed", True,
              all(loss > 0.68 for loss in losses), ", ".join(f"{loss:.4f}" for loss in losses)),
        Claim("Without Lo-Fi heads every seed ranks pairs at chance: below 62 %, and 30 points behind alpha .5",
              True, all(a < 62 and b - a > 30 for a, b in pairs), ranked),
        Claim("Without Lo-Fi heads no seed is above the bound of 75 % (and 3 standard errors)", True,
              all(a < 78 for a, _, _ in triples), shown),
        Claim("With half of the heads in Lo-Fi the accuracy is above 95 % on every seed", True,
              all(b > 95 for _, b, _ in triples), shown),
        Claim("Alpha .5 is at most 3 points behind MSA on every seed", True,
              all(b >= c - 3 for _, b, c in triples), shown),
        Claim("Without Lo-Fi heads the mean accuracy is below 62 %, and 30 points behind alpha .5", len(results) > 1,
              without < 62 and with_half - without > 30, f"means {without:.1f} and {with_half:.1f} %"),
        Claim("Without Lo-Fi heads every seed is below 62 % (at chance the accuracy is anywhere below 75)",
              False, all(a < 62 for a, _, _ in triples), shown),
    ]  # fmt: skip


def frequency_claims(results: Sequence[SeedResult]) -> list[Claim]:
    """Part C: Hi-Fi holds more of its energy at high frequencies, DC counted in the whole."""
    ratios = [
        r.shares["trained"][f"block {b} Hi-Fi"] / r.shares["trained"][f"block {b} Lo-Fi"]
        for r in results
        for b in BLOCKS
    ]
    shown = "by seed and block: " + ", ".join(f"{ratio:.1f}x" for ratio in ratios)
    accuracies = {arm: [r.digits[arm] for r in results] for arm in results[0].digits}
    best = max(accuracies, key=lambda arm: sum(accuracies[arm]))
    means = ", ".join(f"{arm} {sum(v) / len(v):.1f} %" for arm, v in accuracies.items())
    return [
        Claim("Hi-Fi has over 1.5 times Lo-Fi's energy share beyond 0.25 cycles a token, every block and seed", True,
              min(ratios) > 1.5, shown),
        Claim("HiLo alpha .5 is the best of the four on digits (noise: ConvFFN alone solves them)", False,
              best == arm_name(0.5), means),
    ]  # fmt: skip
