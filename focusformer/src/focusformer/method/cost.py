"""What an architecture costs: parameters, FLOPs as the official code counts them, honest MACs, measured latency.

Every cost is a callable of an architecture, additive over the layers, with the name that goes with each number.
"1.4 G" and the like in the papers' tables are official FLOPs.

Letters: e width, q_i = 64 h_i and H_i = int(e r_i) widths of layer i, D of the supernet; P patches, N = P + 1 tokens,
p = channels x patch size^2 values of a patch, C classes, M clip of relative positions.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from focusformer.method.architecture import Architecture, SearchSpace, SuperSizes
from paperkit.errors import UserError
from paperkit.files.bounded import read_json


class Cost(Protocol):
    """A cost of architectures: its name, its unit, and the callable itself."""

    @property
    def name(self) -> str:
        """What is counted, as it stands beside every number."""

    @property
    def unit(self) -> str:
        """Of the numbers."""

    def __call__(self, architecture: Architecture) -> float:
        """The cost of one architecture."""


def linear_params(inputs: int, outputs: int, bias: bool = True) -> int:
    """Of the used slice of a linear."""
    return (inputs + bias) * outputs


def params(sizes: SuperSizes, architecture: Architecture) -> int:
    """Parameters that a sub-network uses; exactly those of the extracted model."""
    e = architecture.embed
    total = linear_params(sizes.patch_values, e) + e + linear_params(e, sizes.num_classes)
    total += e * (sizes.patches + 1) * sizes.abs_pos + 2 * e * sizes.pre_norm
    for heads, hidden in zip(architecture.heads, architecture.hidden, strict=True):
        q = sizes.q(heads)
        total += linear_params(e, 3 * q, sizes.qkv_bias) + linear_params(q, e) + 4 * e
        total += linear_params(e, hidden) + linear_params(hidden, e)
        if sizes.relative_position:
            total += 4 * (2 * sizes.max_relative_position + 2) * (q // heads)
    return total


def attention_flops(tokens: int, e: int, q: int, max_relative_position: int | None) -> float:
    """Of one attention as the official code counts it, for n tokens; relative position brings halves."""
    n = tokens
    total = 3 * n * e * q + 2 * n * n * q + n * q * e
    if max_relative_position is None:
        return total
    return total + 2 * max_relative_position * n * n + n * n / 2 + n * q / 2


def block_flops(tokens: int, e: int, q: int, hidden: int, max_relative_position: int | None) -> float:
    """Of one block as the official code counts it; it adds 1 to the number of tokens that it is given."""
    n = tokens + 1
    return 2 * n * e + attention_flops(n, e, q, max_relative_position) + 2 * n * e * hidden


def patch_embedding_flops(e: int, patches: int, patch_values: int) -> int:
    """Of the patch embedding as the official code counts it."""
    return e + patches * e * patch_values


def official_flops(sizes: SuperSizes, architecture: Architecture) -> float:
    """FLOPs of AutoFormer's counter: multiply-adds in truth, of n = P + 2 tokens (one too many), a head on every token.

    It holds halves; float64 is exact.
    """
    e, tokens = architecture.embed, sizes.patches + 1
    total: float = patch_embedding_flops(e, sizes.patches, sizes.patch_values) + tokens * sizes.num_classes * e
    total += tokens * e / 2 * sizes.abs_pos
    clip = sizes.max_relative_position if sizes.relative_position else None
    for heads, hidden in zip(architecture.heads, architecture.hidden, strict=True):
        total += block_flops(tokens, e, sizes.q(heads), hidden, clip)
    return float(total)


def macs(sizes: SuperSizes, architecture: Architecture) -> int:
    """Multiply-adds of the matrix products, without those of relative position (`relative_macs`)."""
    e, tokens = architecture.embed, sizes.patches + 1
    total = sizes.patches * sizes.patch_values * e + sizes.num_classes * e
    for heads, hidden in zip(architecture.heads, architecture.hidden, strict=True):
        q = sizes.q(heads)
        total += 4 * tokens * e * q + 2 * tokens**2 * q + 2 * tokens * e * hidden
    return total


def relative_macs(sizes: SuperSizes, architecture: Architecture) -> int:
    """Multiply-adds of the two products with relative positions in their official form: sum_i 2 N^2 q_i."""
    if not sizes.relative_position:
        return 0
    return sum(2 * (sizes.patches + 1) ** 2 * sizes.q(heads) for heads in architecture.heads)


COUNTERS: dict[str, tuple[str, Callable[[SuperSizes, Architecture], float]]] = {
    "params": ("parameters", params),
    "official_flops": ("FLOPs", official_flops),
    "macs": ("MACs", macs),
}
"""Counters by their names: unit and function."""


@dataclass(frozen=True)
class Counter:
    """A counter for one supernet; see `costs_of`."""

    sizes: SuperSizes
    name: str

    @property
    def unit(self) -> str:
        """Of the numbers."""
        return COUNTERS[self.name][0]

    def __call__(self, architecture: Architecture) -> float:
        """The cost of an architecture of any depth."""
        return COUNTERS[self.name][1](self.sizes, architecture)


def costs_of(sizes: SuperSizes, kind: str) -> Counter:
    """The counter of a name: params, official_flops or macs.

    Raises:
        UserError: another name.
    """
    if kind not in COUNTERS:
        raise UserError(f"cost {kind!r} does not exist; known: {', '.join(COUNTERS)}, or a latency table")
    return Counter(sizes, kind)


def cost(sizes: SuperSizes, architecture: Architecture, kind: str) -> float:
    """One cost of one architecture, see `costs_of`."""
    return costs_of(sizes, kind)(architecture)


@dataclass(frozen=True)
class LatencyTable:
    """Measured milliseconds of parts, whose sum is the latency of an architecture.

    Args:
        stem: width -> all but the blocks. blocks: `e/h/r` -> one block, wherever it stands.
        device: where it was measured, with threads, precision and batch, as text.

    Raises:
        UserError: an entry that is no positive number, or a block of another name.
    """

    stem: Mapping[int, float]
    blocks: Mapping[tuple[int, int, float], float]
    device: str = ""
    name = "latency"
    unit = "ms"

    def __post_init__(self) -> None:
        for where, value in [*self.stem.items(), *self.blocks.items()]:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise UserError(f"latency of {_text(where)} is {value!r}; need positive milliseconds")

    def __call__(self, architecture: Architecture) -> float:
        """Milliseconds.

        Raises:
            UserError: an entry that the table lacks.
        """
        a = architecture
        parts = [(a.embed, heads, ratio) for heads, ratio in zip(a.heads, a.ratios, strict=True)]
        self._need([a.embed], parts)
        return self.stem[a.embed] + math.fsum(self.blocks[part] for part in parts)

    def check(self, space: SearchSpace) -> None:
        """Passes if it has every part of a space.

        Raises:
            UserError: names the first that it lacks.
        """
        self._need(list(space.embed), [(e, h, r) for e in space.embed for h in space.heads for r in space.ratios])

    def _need(self, widths: list[int], parts: list[tuple[int, int, float]]) -> None:
        lacking: list[Any] = [w for w in widths if w not in self.stem] + [p for p in parts if p not in self.blocks]
        if lacking:
            kind = "block" if isinstance(lacking[0], tuple) else "stem of width"
            raise UserError(
                f"the latency table lacks {len(set(lacking))} entries, the first the {kind} {_text(lacking[0])}; "
                "measure the space with `focusformer latency`"
            )

    @classmethod
    def from_plain(cls, content: Any) -> "LatencyTable":
        """From what `to_plain` gives.

        Raises:
            UserError: another form.
        """
        if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in ("stem", "blocks")):
            raise UserError('need an object with "stem" and "blocks", each a mapping to milliseconds')
        try:
            stem = {int(width): value for width, value in content["stem"].items()}
            blocks = {}
            for text, value in content["blocks"].items():
                embed, heads, ratio = text.split("/")
                blocks[int(embed), int(heads), float(ratio)] = value
        except ValueError as error:
            raise UserError(
                f"stem entries are WIDTH and blocks WIDTH/HEADS/RATIO, such as 192/3/3.5 ({error})"
            ) from None
        return cls(stem, blocks, str(content.get("device", "")))

    @classmethod
    def read(cls, path: str | Path) -> "LatencyTable":
        """From the JSON file of `focusformer latency`.

        Raises:
            UserError: unreadable or of another form.
        """
        try:
            return cls.from_plain(read_json(path, "latency table"))
        except UserError as error:
            raise UserError(f"latency table {path}: {error}") from None

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "device": self.device,
            "unit": self.unit,
            "stem": {_text(width): value for width, value in self.stem.items()},
            "blocks": {_text(part): value for part, value in self.blocks.items()},
        }


def _text(where: Any) -> str:
    return "/".join(f"{number:g}" for number in (where if isinstance(where, tuple) else (where,)))
