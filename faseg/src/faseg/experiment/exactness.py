"""What holds by construction, measured: windows against the whole fine map, and the folded focus against the plain sum.

Shapes: B batch, Q queries, N keys, C channels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from faseg.method.attention import Attention
from faseg.method.decoder_layers import CrossAttention
from faseg.method.hrca import choose_windows, gather_windows
from paperkit.data.seeding import generators_kept, seed_generators
from paperkit.results.flops import MacCounter

COARSE, FINE = (4, 4), (32, 32)
CHANNELS, HEADS, QUERIES = 32, 4, 100


@dataclass(frozen=True)
class Exactness:
    """Measured on random numbers.

    Attributes:
        all_windows: largest difference of high-resolution attention with omega 1 to attention over the whole fine map.
        key_tokens: of the whole fine map, and of the windows kept with omega.
        key_macs: multiply-adds of that attention that grow with its keys, for both.
        focus: largest difference of the folded focus to the sum over the product of Q x N x C.
        largest: elements of the largest tensor that the plain sum makes, and the folded one.
    """

    all_windows: float
    key_tokens: tuple[int, int]
    key_macs: tuple[int, int]
    focus: float
    largest: tuple[int, int]


@torch.no_grad()
def measure_exactness(omega: int) -> Exactness:
    """Both on random numbers of a fixed seed."""
    with generators_kept():
        seed_generators(0)
        all_windows, tokens, macs = _windows(omega)
        focus, largest = _focus()
    return Exactness(all_windows, tokens, macs, focus, largest)


def _windows(omega: int) -> tuple[float, tuple[int, int], tuple[int, int]]:
    layer = CrossAttention(CHANNELS, HEADS)
    x, position = torch.randn(2, 1, QUERIES, CHANNELS)
    features, places = torch.randn(2, 1, CHANNELS, *FINE)
    scores = torch.rand(1, QUERIES, COARSE[0] * COARSE[1])

    def windows(omega: int) -> tuple[Tensor, Tensor]:
        cells = choose_windows(scores, omega)
        value = gather_windows(features, cells, COARSE)
        return value + gather_windows(places, cells, COARSE), value

    def whole() -> tuple[Tensor, Tensor]:
        value = features.flatten(2).transpose(1, 2)
        return value + places.flatten(2).transpose(1, 2), value

    def macs(key: Tensor, value: Tensor) -> int:
        with MacCounter() as counter:
            layer(x, position, key, value)
        return counter.macs

    difference = (layer(x, position, *windows(1)).values - layer(x, position, *whole()).values).abs().max()
    kept, full = windows(omega), whole()
    alone = 2 * macs(full[0][:, :512], full[1][:, :512]) - macs(full[0], full[1])  # linear in the keys: what is without
    return (
        float(difference),
        (full[0].shape[1], kept[0].shape[1]),
        (macs(*full) - alone, macs(*kept) - alone),
    )


def _focus() -> tuple[float, tuple[int, int]]:
    layer, keys = Attention(CHANNELS, HEADS), FINE[0] * FINE[1]
    x, key, places = torch.randn(1, QUERIES, CHANNELS), torch.randn(1, keys, CHANNELS), torch.randn(1, keys, CHANNELS)
    looked = layer(x, key, key, want_map=True).map
    with _Largest() as plain:
        summed = (looked[..., None] * places[:, None]).sum(2)
    with _Largest() as folded:
        focus = layer(x, key, key, positions=places).focus
    return float((focus - summed).abs().max()), (plain.elements, folded.elements)


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives inside the block."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and not leaf._is_view():
                self.elements = max(self.elements, leaf.numel())
        return result
