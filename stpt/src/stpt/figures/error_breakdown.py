"""What the best detections are: right, or wrong in which way, and what mAP would be without each kind of error."""

from matplotlib.figure import Figure

from paperkit.results.report import COLORS, figure, style
from stpt.method.errors import KINDS, ErrorBreakdown

KIND_COLORS = dict(zip(KINDS, (COLORS[2], COLORS[5], COLORS[3], COLORS[4], COLORS[1], "#999999"), strict=True))


def draw_error_breakdown(found: ErrorBreakdown) -> Figure:
    """Left: shares of the kinds, slot by slot of as many detections as there are actions. Right: gains in mAP."""
    with style():
        drawn, (left, right) = figure(1, 2, width=10.5, height=4.2, width_ratios=(1.5, 1))
        slots = [f"{number}G" for number in range(1, len(found.shares) + 1)]
        below = [0.0] * len(slots)
        for kind, shares in zip(KINDS, found.shares.T, strict=True):
            left.bar(slots, 100 * shares, bottom=below, color=KIND_COLORS[kind], label=kind, width=0.8)
            below = [low + 100 * share for low, share in zip(below, shares, strict=True)]
        left.set(
            xlabel="detections by falling score, in steps of the number of actions of their class (G)",
            ylabel="share of the detections, %",
            title=f"What detections are at tIoU {found.threshold:g}",
            ylim=(0, 100),
        )
        left.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=3)
        names, gains = list(found.gains), [100 * gain for gain in found.gains.values()]
        right.barh(names, gains, color=[KIND_COLORS[name] for name in names])
        right.invert_yaxis()
        missed = 100 * found.missed / found.actions
        right.set(
            xlabel="gain in mAP, points", title=f"mAP without one kind of error\n({missed:.0f} % of actions missed)"
        )
    return drawn
