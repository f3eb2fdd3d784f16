"""Energy against ImageNet accuracy of the paper's networks: energies by our ledger, accuracies as published."""

import functools
import json
from functools import partial
from importlib.resources import files
from typing import Any

from matplotlib.figure import Figure

from ecoformer.method.energy import ledger
from ecoformer.models.architectures import build
from paperkit.results.report import COLORS, figure, style

FORMS = (("ecoformer", "EcoFormer", "top1"), ("msa", "full attention", "top1_msa"), ("sra", "unmodified", "top1_sra"))

TICKS = (2.5, 5, 10, 20, 40)


def published() -> list[dict[str, Any]]:
    """The paper's ImageNet table."""
    return json.loads((files("ecoformer") / "published" / "imagenet.json").read_text(encoding="utf-8"))["rows"]


@functools.cache
def energies() -> dict[str, dict[str, float]]:
    """Network -> form -> billions of pJ of one image at 224 px, by the ledger; Twins' SRA is not in the paper."""
    return {
        row["network"]: {
            form: ledger(partial(build, f"{row['network']}_{form}")).total.energy_pj() / 1e9 for form, _, _ in FORMS
        }
        for row in published()
    }


def draw_energy_and_accuracy() -> Figure:
    """Left: energy of every network in three forms. Right: energy against top-1 where an accuracy is published."""
    rows, found = published(), energies()
    with style():
        drawn, (left, right) = figure(1, 2, width=11, height=4.4)
        for i, (form, label, key) in enumerate(FORMS):
            places = [j + 0.27 * (i - 1) for j in range(len(rows))]
            left.bar(places, [found[row["network"]][form] for row in rows], 0.25, color=COLORS[i], label=label)
            points = [(found[row["network"]][form], row[key], row["network"]) for row in rows if row[key] is not None]
            right.plot([p[0] for p in points], [p[1] for p in points], "os^"[i], color=COLORS[i], label=label)
            if form == "ecoformer":
                for energy, top1, name in points:
                    right.annotate(_short(name), (energy, top1), (4, -10), textcoords="offset points", fontsize=8)
        left.set_xticks(range(len(rows)), [_short(row["network"]) for row in rows])
        left.set(ylabel="billion pJ an image", title="Energy at 224 px, by this ledger")
        left.legend()
        right.set(xlabel="billion pJ an image", ylabel="ImageNet top-1, % (published)", xscale="log")
        right.set_xticks(TICKS, map(str, TICKS))
        right.minorticks_off()
        right.set_title("Energy against published accuracy")
        right.legend(loc="lower right")
        drawn.suptitle("The paper's networks: large savings against full attention, small ones against the unmodified")
    return drawn


def _short(name: str) -> str:
    return name.replace("pvt_v2_", "PVTv2-").replace("alt_gvt_small", "Twins-S").replace("-b", "-B")
