"""What the embedded experiment says: rows, claims and the numbers behind the figures."""

from collections.abc import Sequence
from dataclasses import asdict

from paperkit.results.metrics import Claim, Metrics, Row
from paperkit.results.report import mean_spread
from spt.experiment.settings import LEAST, LINEAR, RANDOM, SENSITIVE, ExperimentConfig, SeedResult

# (text, first arm, second arm, test on the mean difference, asserted). A larger trial decided which
# are safe: three backbones, four seeds, four tasks. It calls the third safe too (1.2, 1.0 and 0.8 points); 1.0 came out
# on an Intel Xeon with AVX-512, but 2.7 +- 1.0 on an AMD EPYC, whose sums round differently, so it is reported only.
CLAIMS = (
    ("sensitive entries beat random entries by at least 1.5 points", SENSITIVE, RANDOM, lambda d: d >= 1.5, True),
    ("random entries beat the least sensitive ones by at least 2 points", RANDOM, LEAST, lambda d: d >= 2, True),
    ("the least sensitive entries are within 2 points of a linear probe", LEAST, LINEAR, lambda d: abs(d) <= 2, False),
    ("SPT-LoRA beats the same structure in wrong places", "SPT-LoRA", "SPT-LoRA, wrong places", lambda d: d > 0, False),
    ("SPT-LoRA beats LoRA on every q and v", "SPT-LoRA", "LoRA on q, v", lambda d: d > 0, False),
    ("sensitive entries beat the largest magnitudes", SENSITIVE, "largest magnitude", lambda d: d > 0, False),
    (
        "sensitive entries beat peft's SHiRA with our ranking",
        SENSITIVE,
        "peft SHiRA, sensitive mask",
        lambda d: d > 0,
        False,
    ),
    ("sensitive entries beat peft's Supertuning", SENSITIVE, "peft Supertuning", lambda d: d > 0, False),
    ("sensitive entries beat peft's LoRA", SENSITIVE, "peft LoRA", lambda d: d > 0, False),
    ("four random heads beat one", "sensitive entries, 4 heads", SENSITIVE, lambda d: d > 0, False),
)


def task_means(result: SeedResult, arm: str) -> float:
    """Mean accuracy over the tasks of one seed."""
    accuracies = [by_arm[arm] for by_arm in result.accuracy.values()]
    return sum(accuracies) / len(accuracies)


def summarise(results: Sequence[SeedResult], config: ExperimentConfig, seconds: float, backbone: float) -> Metrics:
    """Rows (accuracy as the mean over tasks, and by task; parameters), claims on paired differences, the figures' data.

    Args:
        seconds: wall time of the command.
        backbone: accuracy (%) of the pre-trained backbone on the unseen half of the digits.
    """
    rows = [Row("backbone", "accuracy on the unseen half, source task", [backbone], "%")]
    for arm in config.arm_list:
        rows.append(Row(arm, "accuracy, mean over tasks", [task_means(result, arm) for result in results], "%"))
    for arm in config.arm_list:
        spent = [sum(by_arm[arm] for by_arm in result.spent.values()) / len(config.tasks) for result in results]
        rows.append(Row(arm, f"trained of {config.budget} beside head and class token", spent))
    for task in config.tasks:
        rows += [
            Row(arm, f"accuracy, {task}", [r.accuracy[task][arm] for r in results], "%") for arm in config.arm_list
        ]
    claims = []
    for text, first, second, test, asserted in CLAIMS:
        if first in config.arm_list and second in config.arm_list:
            pairs = [task_means(r, first) - task_means(r, second) for r in results]
            single = [r.accuracy[t][first] - r.accuracy[t][second] for r in results for t in config.tasks]
            wins = f"{sum(d > 0 for d in single)} of {len(single)} pairs positive"
            mean = sum(pairs) / len(pairs)
            claims.append(
                Claim(text, asserted, bool(test(mean)), f"paired difference {mean_spread(pairs):.1f}, {wins}")
            )
    overlap: dict[str, list[float]] = {}
    for result in results:
        for pair, value in result.overlap.items():
            overlap.setdefault(pair, []).append(value)
    rows += [Row(f"marks of {pair}", "Jaccard overlap", values) for pair, values in overlap.items()]
    extra = {
        "seeds": [asdict(result) for result in results],
        "evaluated_on": "validation images" if config.val_images else "test images",
        "counting": "every arm trains head and class token besides; AdaLoRA is counted at its final ranks, of twice "
        "as many at the start; entries of LayerNorm that SPT's allocation marks are counted but not trained",
    }
    return Metrics("spt", [result.seed for result in results], seconds, rows, claims, extra)
