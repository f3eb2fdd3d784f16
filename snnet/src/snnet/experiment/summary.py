"""The embedded experiment's result: rows and claims of metrics.json, from what the seeds gave. No torch in here."""

from collections.abc import Sequence
from statistics import mean

from paperkit.results.metrics import Claim, Metrics, Row
from snnet.experiment.settings import DEFAULT, METHOD, ExperimentConfig, SeedResult
from snnet.method.sampling import IdStream

SHORT = 10  # epochs of the short budget


def summarise(results: Sequence[SeedResult], config: ExperimentConfig, seconds: float) -> Metrics:
    """Rows (per arm: accuracy, training steps, training multiply-adds) and the claims of the experiment."""
    return Metrics(
        paper="snnet",
        seeds=[result.seed for result in results],
        seconds=seconds,
        rows=accuracy_rows(results, config) + curve_rows(results) + cost_rows(results, config),
        claims=asserted_claims(results) + reported_claims(results),
        extra={
            "split": "validation" if config.val_images else "test",
            "configurations": [
                {"id": i, "name": name, "macs": macs, "params": params, "cut": cut}
                for i, (name, macs, params, cut) in enumerate(
                    zip(results[0].names, results[0].macs, results[0].params, results[0].cuts, strict=True)
                )
            ],
            "curves": {arm: [result.curves[arm] for result in results] for arm in (METHOD, DEFAULT)},
            "arms": [result.arms for result in results],
        },
        threads=1,
    )


def group(result: SeedResult, front: int | None = None) -> list[int]:
    """Ids of the stitches, of all or of those that leave one anchor."""
    return [i for i, cut in enumerate(result.cuts) if cut is not None and front in (None, cut[0])]


def mean_of(found: dict[int, float], ids: Sequence[int]) -> float:
    return mean(found[i] for i in ids)


def accuracy_rows(results: Sequence[SeedResult], config: ExperimentConfig) -> list[Row]:
    """Accuracy at the end, arm by arm."""
    rows = []
    for name in config.anchor_names:
        rows.append(Row(f"anchor {name}", "accuracy", [one(r.arms[f"anchor {name}"]) for r in results], "%"))
    for arm in (*(f"{name} tuned alone" for name in config.anchor_names), "middle distilled"):
        rows.append(Row(arm, "accuracy", [one(r.arms[arm]) for r in results], "%"))
    if config.scratch_ids:
        values = [mean(r.arms["from scratch"].values()) for r in results]
        rows.append(Row(f"from scratch, {len(config.scratch_ids)} shapes", "mean accuracy", values, "%"))
    for arm in (DEFAULT, METHOD):
        for anchor, name in enumerate(config.anchor_names):
            rows.append(Row(arm, f"{name} anchor in it", [r.arms[arm][anchor] for r in results], "%"))
        for label, front in (("all stitches", None), ("small-middle stitches", 0), ("middle-large stitches", 1)):
            rows.append(Row(arm, f"mean of {label}", [mean_of(r.arms[arm], group(r, front)) for r in results], "%"))
    return rows


def curve_rows(results: Sequence[SeedResult]) -> list[Row]:
    """Mean stitch accuracy before training and after the measured epochs."""
    return [
        Row(
            arm, f"mean of all stitches, epoch {epoch}", [mean_of(r.curves[arm][epoch], group(r)) for r in results], "%"
        )
        for arm in (DEFAULT, METHOD)
        for epoch in results[0].curves[arm]
    ]


def cost_rows(results: Sequence[SeedResult], config: ExperimentConfig) -> list[Row]:
    """Training steps and multiply-adds (forward and backward: three times the forward pass) of each arm."""
    macs, per_step = results[0].macs, 3 * config.batch_size
    joint = config.joint_steps
    steps: dict[str, int] = {}
    work: dict[str, list[int]] = {}
    for anchor, name in enumerate(config.anchor_names):
        steps[f"anchor {name}"] = config.anchor_epochs * config.steps_per_epoch
        work[f"anchor {name}"] = [steps[f"anchor {name}"] * per_step * macs[anchor]] * len(results)
        steps[f"{name} tuned alone"] = joint
        work[f"{name} tuned alone"] = [joint * per_step * macs[anchor]] * len(results)
    steps["middle distilled"] = joint
    work["middle distilled"] = [joint * config.batch_size * (3 * macs[1] + macs[2])] * len(results)
    if config.scratch_ids:
        arm = f"from scratch, {len(config.scratch_ids)} shapes"
        each = config.scratch_epochs * config.steps_per_epoch
        steps[arm] = each * len(config.scratch_ids)
        work[arm] = [each * per_step * sum(macs[i] for i in config.scratch_ids)] * len(results)
    for arm in (DEFAULT, METHOD):
        steps[arm] = joint
        streams = [IdStream(range(config.num_configurations), result.seed) for result in results]
        chunk = per_step // config.stitches_per_step
        work[arm] = [sum(macs[s[k]] for k in range(joint * config.stitches_per_step)) * chunk for s in streams]
    rows = []
    for arm, count in steps.items():
        rows.append(Row(arm, "training steps", [float(count)]))
        rows.append(Row(arm, "training multiply-adds", [w / 1e9 for w in work[arm]], "G"))
    return rows


def one(found: dict[int, float]) -> float:
    """The accuracy of an arm that has one configuration."""
    (value,) = found.values()
    return value


def asserted_claims(results: Sequence[SeedResult]) -> list[Claim]:
    """What larger trials have shown to be safe."""

    def stitches(r: SeedResult, arm: str, epoch: int) -> float:
        return mean_of(r.curves[arm][epoch], group(r))

    before = [(stitches(r, METHOD, 0), stitches(r, DEFAULT, 0)) for r in results]
    claims = [
        Claim(
            "Before training, stitches start better from least squares than from default initialisation, in every seed",
            True,
            all(ours > default for ours, default in before),
            pairs(before),
        )
    ]
    if SHORT in results[0].curves[METHOD]:
        short = [(stitches(r, METHOD, SHORT), stitches(r, DEFAULT, SHORT)) for r in results]
        held = mean(a for a, _ in short) > mean(b for _, b in short)
        claims.append(
            Claim(f"After {SHORT} epochs least squares is ahead on the mean over seeds", True, held, pairs(short))
        )
    upper = [(mean_of(r.arms[METHOD], group(r, 1)), mean_of(r.arms[METHOD], group(r, 0))) for r in results]
    claims.append(
        Claim(
            "Stitches into the large anchor are better than stitches into the middle one, on the mean over seeds",
            True,
            mean(a for a, _ in upper) > mean(b for _, b in upper),
            pairs(upper),
        )
    )
    spans = len(set(results[0].macs))
    claims.append(
        Claim(
            "Switching changes the multiply-adds and moves no weight",
            True,
            all(r.switch_keeps_weights for r in results) and spans > 3,
            f"{spans} different costs over {len(results[0].macs)} configurations",
        )
    )
    return claims


def reported_claims(results: Sequence[SeedResult]) -> list[Claim]:
    """Printed as they come out; larger trials did not show them to be safe."""
    last = [(mean_of(r.arms[METHOD], group(r)), mean_of(r.arms[DEFAULT], group(r))) for r in results]
    small = [(mean_of(r.arms[METHOD], group(r, 0)), r.arms[METHOD][0]) for r in results]
    line = [(mean_of(r.arms[METHOD], group(r)), mean(interpolated(r, i) for i in group(r))) for r in results]
    distilled = [(r.arms[METHOD][1], one(r.arms["middle distilled"])) for r in results]
    claims = [
        compared("At the end least squares is still ahead of default initialisation (mean of all stitches)", last),
        compared("Small-middle stitches are better than the small anchor in the same network", small),
        compared("Stitches lie above the straight line between their two anchors", line),
        compared(
            "The middle anchor in the stitched network beats the middle anchor distilled alone, same steps", distilled
        ),
    ]
    if results[0].arms["from scratch"]:
        ids = list(results[0].arms["from scratch"])
        scratch = [(mean_of(r.arms[METHOD], ids), mean_of(r.arms["from scratch"], ids)) for r in results]
        claims.append(
            compared("Stitches beat networks of their shape trained from scratch on the same total steps", scratch)
        )
    ranks = [spearman(r.macs, [r.arms[METHOD][i] for i in range(len(r.macs))]) for r in results]
    text = "Accuracy rises with multiply-adds over all configurations (Spearman's rank correlation above 0)"
    return [*claims, Claim(text, False, all(rank > 0 for rank in ranks), ", ".join(f"{rank:.2f}" for rank in ranks))]


def compared(text: str, values: Sequence[tuple[float, float]]) -> Claim:
    """A reported claim that the first of two numbers is larger, on the mean over seeds."""
    return Claim(text, False, mean(a for a, _ in values) > mean(b for _, b in values), pairs(values))


def pairs(values: Sequence[tuple[float, float]]) -> str:
    return ", ".join(f"{a:.1f} against {b:.1f}" for a, b in values)


def interpolated(result: SeedResult, config_id: int) -> float:
    """Accuracy on the line between the two anchors of a stitch (as they are in the stitched network), at its cost."""
    cut = result.cuts[config_id]
    assert cut is not None
    found, (front, end) = result.arms[METHOD], (cut[0], cut[0] + 1)
    share = (result.macs[config_id] - result.macs[front]) / (result.macs[end] - result.macs[front])
    return found[front] + share * (found[end] - found[front])


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation."""
    from scipy.stats import spearmanr  # late: half a second that only this needs

    return float(spearmanr(x, y).statistic)
