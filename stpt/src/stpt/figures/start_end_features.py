"""How strongly a detector's frame-level features speak of starts and ends, along the clip (section 5: the activation
losses ask for 1 at boundaries and 0 elsewhere).

Shapes: T frames of the clip, C channels.
"""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from paperkit.results.report import COLORS, figure, style


def activation(features: Tensor) -> Tensor:
    """(T, C) start- or end-sensitive features -> (T,) mean of tanh over channels: what the losses look at."""
    return features.tanh().mean(-1)


def draw_start_end_features(
    networks: Mapping[str, tuple[Tensor, Tensor]], actions: Sequence[tuple[float, float]], title: str = ""
) -> Figure:
    """Above the starts, below the ends; a line for each network, and the annotated boundaries as dashed lines.

    Args:
        networks: name (such as with and without boundary consistency) -> outputs `start` and `end` of one clip, (T, C).
        actions: start and end of the annotated actions in frames.
    """
    with style():
        drawn, panels = figure(2, 1, width=9.0, height=4.6, sharex=True)
        for panel, which, word in zip(panels, (0, 1), ("start", "end"), strict=True):
            for color, (name, features) in zip(COLORS, networks.items(), strict=False):
                panel.plot(activation(features[which].float()).tolist(), color=color, label=name)
            for action in actions:
                panel.axvline(action[which], color="black", linestyle="--", linewidth=0.9)
            panel.set(ylabel=f"mean tanh of the\n{word}-sensitive half")
        panels[0].set_title(title or "Features for starts and ends along the clip; dashed: annotated boundaries")
        panels[0].legend(loc="upper left")
        panels[1].set_xlabel("frame of the clip")
    return drawn
