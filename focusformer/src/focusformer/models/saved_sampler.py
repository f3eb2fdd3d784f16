"""A trained architecture sampler in a folder of huggingface_hub's layout, and constraints by the names that users say.

sampler = SavedSampler.from_pretrained("runs/focusformer/RUN/sampler")
architecture = sampler.greedy(1.4e9, "flops")
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from focusformer.method.architecture import Architecture, SearchSpace
from focusformer.method.cost import LatencyTable, costs_of
from focusformer.method.reachable import Reachable
from focusformer.method.sampler import ArchitectureSampler
from paperkit.errors import UserError
from paperkit.files.hub import SavedInFolder

COUNTERS = {"flops": "official_flops", "params": "params", "macs": "macs"}
"""Constraint -> counter; `latency` comes with a table instead. "1.4 G" of the papers' tables is `flops`."""
KINDS = (*COUNTERS, "latency")
CARD = """---
{{ card_data }}
---

# FocusFormer sampler

It names an architecture of its search space for a resource constraint (arXiv 2208.10861), in one call; the form of the
sampler is a reference design, since the paper's was never published.

Load it with `focusformer.SavedSampler.from_pretrained(FOLDER)`. It goes with the supernet that it was trained with, in
the same run.
"""


def cost_of(space: SearchSpace, kind: str, table: LatencyTable | None = None) -> Callable[[Architecture], float]:
    """A kind of constraint as a cost of architectures.

    Raises:
        UserError: another kind, or a latency without a table that has every part of the space.
    """
    if kind == "latency":
        if table is None:
            raise UserError("a latency needs its table: measure one with `focusformer latency` and name the file")
        table.check(space)
        return table
    if kind not in COUNTERS:
        raise UserError(f"constraint {kind!r} is none of {', '.join(KINDS)}")
    return costs_of(space.sizes, COUNTERS[kind])


def constraint(space: SearchSpace, kind: str, least: float, table: LatencyTable | None = None) -> Reachable:
    """The reachable costs of a space, of one kind; a budget tau allows the costs from `least` tau to tau.

    Raises:
        UserError: as `cost_of`.
    """
    return Reachable(space, cost_of(space, kind, table), kind, least)


class SavedSampler(
    ArchitectureSampler,
    SavedInFolder,
    library_name="focusformer",
    license="apache-2.0",
    tags=["focusformer", "neural-architecture-search"],
    model_card_template=CARD,
):
    """A sampler that knows how to be built again.

    Args:
        space: what `SearchSpace.to_plain` gives.
        anchors: kind of constraint (flops, params, macs, latency) -> its budgets, ascending; the first is the default.
        policy, temperature, tanh, clip, masking: of `ArchitectureSampler`.
        least: share of a budget that an architecture has to use.
        latency: what `LatencyTable.to_plain` gives, where a latency is among the constraints.

    Raises:
        UserError: values that cannot be.
    """

    def __init__(
        self,
        space: Mapping[str, Any],
        anchors: Mapping[str, list[float]],
        policy: Literal["lstm", "table"] = "lstm",
        least: float = 0.9,
        latency: Mapping[str, Any] | None = None,
        temperature: float = 1.0,
        tanh: float = 0.0,
        clip: float = 0.0,
        masking: bool = True,
    ) -> None:
        chosen = SearchSpace.from_plain(space)
        table = None if latency is None else LatencyTable.from_plain(latency)
        several = [constraint(chosen, kind, least, table) for kind in anchors]
        super().__init__(several, [*anchors.values()], policy, temperature, tanh, clip, masking)
