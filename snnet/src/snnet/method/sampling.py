"""Which configurations a training step runs (paper, section 3.4: one id a step, drawn uniformly from all)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

Sampling = Literal["uniform", "sandwich", "flops"]
REFUSED_SAVINGS = {"compile": "every stitch is a graph of its own, and each step draws another one"}
"""Which of the survey's savings does not go together with drawing a configuration in every step, and why."""


class IdStream:
    """The k-th id drawn, as a function of k: a resumed run asks for the position it stands at, nothing is stored.

    `RandomState(seed).randint(0, n)` in order is the stream of the released code, whose rank r uses `seed + r`.

    Args:
        ids: the configuration ids to draw from.
        seed: seed + rank.
        sampling: `uniform` is the paper's. Two extensions: `sandwich` runs the cheapest and the dearest configuration
            in every step of three or more and draws the rest (Yu and Huang, ICCV 2019); `flops` draws
            one of ten equal bands of multiply-adds first and an id inside it second, so that budgets with few
            configurations are trained as often.
        macs: multiply-adds of each of `ids`, for the extensions.
    """

    def __init__(
        self, ids: Sequence[int], seed: int, sampling: Sampling = "uniform", macs: Sequence[int] | None = None
    ) -> None:
        self.ids, self.sampling = list(ids), sampling
        if sampling != "uniform" and macs is None:
            raise ValueError(f"sampling {sampling!r} needs the multiply-adds of the configurations")
        self.macs = list(macs or [])
        self.bands = _bands(self.macs) if sampling == "flops" else []
        self._generator = np.random.RandomState(seed)
        self._drawn: list[int] = []

    def __getitem__(self, position: int) -> int:
        while position >= len(self._drawn):
            self._drawn += self._draw(1024)
        return self.ids[self._drawn[position]]

    def _draw(self, count: int) -> list[int]:
        """The next `count` positions in `ids`."""
        if not self.bands:
            return self._generator.randint(0, len(self.ids), size=count).tolist()
        chosen = [self.bands[self._generator.randint(len(self.bands))] for _ in range(count)]
        return [band[self._generator.randint(len(band))] for band in chosen]

    def at_step(self, step: int, per_step: int) -> list[int]:
        """The `per_step` ids of a training step."""
        drawn = [self[step * per_step + i] for i in range(per_step)]
        if self.sampling == "sandwich" and per_step > 2:
            order = np.argsort(self.macs, kind="stable")
            drawn[:2] = [self.ids[order[0]], self.ids[order[-1]]]
        return drawn


def _bands(macs: Sequence[int], count: int = 10) -> list[list[int]]:
    """Positions by equal bands between the smallest and the largest cost; bands without any are left out."""
    low, width = min(macs), (max(macs) - min(macs)) / count or 1.0
    bands: list[list[int]] = [[] for _ in range(count)]
    for position, value in enumerate(macs):
        bands[min(int((value - low) / width), count - 1)].append(position)
    return [band for band in bands if band]
