"""Which configurations a training step runs (paper, section 3.4: one id a step, drawn uniformly from all)."""

from collections.abc import Sequence

import numpy as np


class IdStream:
    """The k-th id drawn, as a function of k: a resumed run asks for the position it stands at, nothing is stored.

    `RandomState(seed).randint(0, n)` in order is the stream of the released code, whose rank r uses `seed + r`.

    Args:
        ids: the configuration ids to draw from.
        seed: seed + rank.
    """

    def __init__(self, ids: Sequence[int], seed: int) -> None:
        self.ids = list(ids)
        self._generator = np.random.RandomState(seed)
        self._drawn: list[int] = []

    def __getitem__(self, position: int) -> int:
        while position >= len(self._drawn):
            self._drawn += self._generator.randint(0, len(self.ids), size=1024).tolist()
        return self.ids[self._drawn[position]]

    def at_step(self, step: int, per_step: int) -> list[int]:
        """The `per_step` ids of a training step."""
        return [self[step * per_step + i] for i in range(per_step)]
