"""Times of one U-Net call in every form, beside packed integers."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from paperkit.results.report import COLORS, figure, style


def draw_speed(rows: Sequence[Mapping[str, Any]], machine: str) -> Figure:
    """Bars per network: time over that of packed integers; right of the line is slower.

    Args:
        rows: of the bench's part `network`. machine: processor, features, tier; the title.
    """
    cases = list(dict.fromkeys(row["case"] for row in rows)) or ["nothing measured"]
    with style():
        drawn, axes = figure(1, len(cases), width=5.5 * len(cases), height=4.2)
        for axis, case in zip(axes if len(cases) > 1 else [axes], cases, strict=True):
            here = [row for row in rows if row["case"] == case]
            names, times = [row["form"] for row in here], [row["time / packed"] for row in here]
            axis.barh(names, times, color=[COLORS[1 if name.startswith("packed") else 0] for name in names])
            axis.axvline(1.0, color="black", linewidth=1)
            axis.invert_yaxis()
            axis.set(xscale="log", xlabel="time / packed W8A8 (log)", title=case)
        drawn.suptitle("\n".join(textwrap.wrap(f"One U-Net call: above 1 is slower than packed. {machine}", 110)),
                       fontsize=8)  # fmt: skip
    return drawn
