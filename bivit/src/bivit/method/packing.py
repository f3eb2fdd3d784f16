"""Bits in bytes, and what the kernels compute with them, in plain PyTorch: their reference, and the way without them.

A row of K signs is 8 ceil(K / 64) bytes, little-endian: bit j of byte i is entry 8 i + j, 1 where it is above 0; the
rest is 0 in both operands of a product, so that padding adds nothing to xor. A second plane marks non-zeros where an
input may be 0 (zero rule "ternary").

Shapes: R rows, O outputs, K entries, Q bytes of a row, B batch, H heads, N queries, M keys, d head width.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from bivit.method.softmax_aware import BETA
from paperkit.errors import UserError

WORD = 64


def row_bytes(entries: int) -> int:
    """Bytes of a row: 8 ceil(K / 64)."""
    return 8 * -(-entries // WORD)


def pack_bits(bits: Tensor) -> Tensor:
    """Bool (..., K) -> uint8 (..., Q)."""
    padded = F.pad(bits.to(torch.uint8), (0, 8 * row_bytes(bits.shape[-1]) - bits.shape[-1]))
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (padded.unflatten(-1, (-1, 8)) * weights).sum(-1, dtype=torch.uint8)


def pack_signs(x: Tensor, check: bool = False) -> Tensor:
    """Numbers (..., K) -> uint8 (..., Q), 1 where x > 0.

    Raises:
        UserError: with `check`, numbers that are not finite (they would be the bit 0 without a word).
    """
    if check and not x.isfinite().all():
        raise UserError(f"{int((~x.isfinite()).sum())} of {x.numel()} numbers to be packed are not finite")
    return pack_bits(x > 0)


def pack_nonzeros(x: Tensor) -> Tensor:
    """Numbers (..., K) -> uint8 (..., Q), 1 where x is not 0."""
    return pack_bits(x != 0)


def unpack_bits(packed: Tensor, entries: int) -> Tensor:
    """uint8 (..., Q) -> bool (..., K).

    Raises:
        UserError: another number of bytes than K entries need.
    """
    if packed.shape[-1] != row_bytes(entries):
        raise UserError(f"{packed.shape[-1]} bytes in a row; {entries} entries need {row_bytes(entries)}")
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & 1).flatten(-2)[..., :entries].bool()


def unpack_signs(packed: Tensor, entries: int, nonzeros: Tensor | None = None) -> Tensor:
    """uint8 (..., Q) -> -1 and +1 in float32 (..., K); 0 where the plane of non-zeros says so."""
    signs = unpack_bits(packed, entries).float() * 2 - 1
    return signs if nonzeros is None else signs * unpack_bits(nonzeros, entries)


def popcount(packed: Tensor) -> Tensor:
    """Set bits of rows: uint8 (..., Q) -> int32 (...)."""
    x = packed - ((packed >> 1) & 0x55)
    x = (x & 0x33) + ((x >> 2) & 0x33)
    return ((x + (x >> 4)) & 0x0F).sum(-1, dtype=torch.int32)


def packed_dot(
    a: Tensor, w: Tensor, entries: int, a_nonzeros: Tensor | None = None, w_nonzeros: Tensor | None = None
) -> Tensor:
    """Sums of sign products: (..., R, Q) and (..., O, Q) -> int32 (..., R, O).

    K - 2 popcount(a ^ w); with a plane of non-zeros, or both: popcount(nz) - 2 popcount((a ^ w) & nz).
    """
    rows = []
    for i in range(a.shape[-2]):  # a row at a time: (..., O, Q) bytes of room
        row = a[..., i, None, :]
        differ = row ^ w
        plane = None if a_nonzeros is None else a_nonzeros[..., i, None, :]
        if w_nonzeros is not None:
            plane = w_nonzeros if plane is None else plane & w_nonzeros
        if plane is None:
            rows.append(entries - 2 * popcount(differ))
        else:
            rows.append(popcount(plane) - 2 * popcount(differ & plane))
    shape = torch.broadcast_shapes(a.shape[:-2], w.shape[:-2])
    return torch.stack(rows, -2) if rows else a.new_zeros(*shape, 0, w.shape[-2], dtype=torch.int32)


def packed_linear(
    a: Tensor,
    w: Tensor,
    entries: int,
    scale: Tensor,
    bias: Tensor,
    a_nonzeros: Tensor | None = None,
    w_nonzeros: Tensor | None = None,
) -> Tensor:
    """dot * scale + bias: (R, Q), (O, Q), scale and bias (O,) -> (R, O)."""
    return packed_dot(a, w, entries, a_nonzeros, w_nonzeros) * scale + bias


def dot_margin(head_dim: int, beta: float = BETA) -> int:
    """How far below a row's largest q.k an active key may be: floor(-ln(beta) sqrt(d)).

    Twice `hamming_margin` or one more; without zeros products differ by even numbers, so that both say the same.
    """
    return math.floor(-math.log(beta) * math.sqrt(head_dim))


def active_keys(dot: Tensor, head_dim: int, beta: float = BETA) -> Tensor:
    """SAB on integers, without softmax: q.k (..., N, M) -> bool (..., N, M)."""
    return dot.amax(-1, keepdim=True) - dot <= dot_margin(head_dim, beta)


def packed_sums(active: Tensor, values: Tensor, value_nonzeros: Tensor | None = None) -> Tensor:
    """b v from bits: active keys (..., N, Q), values by channel (..., d, Q) -> int32 (..., N, d), Q bytes of M keys.

    2 popcount(b & v) - popcount(b); with zeros among the values, popcount(b & nz) in the place of the second.
    """
    both = active[..., :, None, :] & values[..., None, :, :]
    if value_nonzeros is None:
        return 2 * popcount(both) - popcount(active)[..., None]
    return 2 * popcount(both) - popcount(active[..., :, None, :] & value_nonzeros[..., None, :, :])
