"""What a network costs: multiply-accumulates by kind of layer and by part, attention products included.

Papers of this field print them as "GFLOPs"; one multiply-accumulate counts 1 here, not 2. Counting happens on the meta
device, where torch's counter sees fused attention and no number is computed. Norms, activations and poolings count 0.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from paperkit.results.flops import on_meta

LINEAR, ATTENTION, CONVOLUTION = "linear", "attention", "convolution"
KINDS = {
    "mm": LINEAR,
    "addmm": LINEAR,
    "bmm": ATTENTION,
    "baddbmm": ATTENTION,
    "convolution": CONVOLUTION,
    "_convolution": CONVOLUTION,
}
"""Operator -> kind of layer. On the meta device fused attention falls apart into batched products."""


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass.

    Attributes:
        parts: module's name -> kind (`linear`, `attention`, `convolution`) -> multiply-accumulates; `""` is the whole.
        params: parameters, each counted once.
    """

    parts: Mapping[str, Mapping[str, int]]
    params: int

    @property
    def kinds(self) -> Mapping[str, int]:
        """Of the whole network, by kind."""
        return self.parts.get("", {})

    @property
    def total(self) -> int:
        """Of the whole network."""
        return sum(self.kinds.values())

    @property
    def stages(self) -> list[Mapping[str, int]]:
        """By kind, of each stage of the backbone, in order; empty for a network without stages."""
        prefix = "stages." if "stages.0" in self.parts else "backbone.stages."
        count = sum(name.startswith(prefix) and name.removeprefix(prefix).isdigit() for name in self.parts)
        return [self.parts[f"{prefix}{i}"] for i in range(count)]

    def of(self, part: str) -> int:
        """Of a module and what is in it, by its name; 0 for one that multiplies nothing."""
        return sum(self.parts.get(part, {}).values())


def count_macs(module: nn.Module, *shapes: Sequence[int] | Tensor) -> Macs:
    """Counts one forward pass in eval mode; the module stays as it is.

    Args:
        module: on any device. shapes: of its inputs.

    Raises:
        ValueError: an operator that multiplies and is of no known kind.

    Example:
        >>> count_macs(create_backbone("stpt"), (1, 3, 256, 96, 96)).total / 1e9
        110.4
    """
    model = on_meta(module).eval()
    inputs: list[Any] = [torch.empty(tuple(s), device="meta") if not isinstance(s, Tensor) else s for s in shapes]
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        model(*inputs)
    own = type(model).__name__
    parts: dict[str, dict[str, int]] = {}
    for name, operators in counter.get_flop_counts().items():
        if name == "Global":
            continue
        kinds: defaultdict[str, int] = defaultdict(int)
        for operator, flops in operators.items():
            label = str(operator).rpartition(".")[2]
            if label not in KINDS:
                raise ValueError(f"{operator} is of no known kind; known are {', '.join(KINDS)}")
            kinds[KINDS[label]] += flops // 2
        parts["" if name == own else name.removeprefix(f"{own}.")] = dict(kinds)
    return Macs(parts, sum(p.numel() for p in module.parameters()))
