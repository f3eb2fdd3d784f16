"""Bits in plain PyTorch against the simulated layers."""

import pytest
import torch

from bivit.method.attention import BinaryAttention
from bivit.method.binary_linear import BinaryLinear
from bivit.method.packing import (
    active_keys,
    pack_bits,
    pack_nonzeros,
    pack_signs,
    packed_dot,
    packed_linear,
    packed_sums,
    popcount,
    row_bytes,
    unpack_bits,
    unpack_signs,
)
from paperkit.errors import UserError


@pytest.mark.parametrize("entries", [1, 7, 63, 64, 65, 200])
def test_packing_and_back(entries: int) -> None:
    x = torch.randn(3, 2, entries)
    x[..., 0] = 0
    packed = pack_signs(x)
    assert packed.shape == (3, 2, row_bytes(entries)) and packed.dtype == torch.uint8
    assert torch.equal(unpack_bits(packed, entries), x > 0)
    assert torch.equal(unpack_signs(packed, entries, pack_nonzeros(x)), x.sign())
    assert torch.equal(popcount(packed), (x > 0).sum(-1, dtype=torch.int32))
    assert pack_bits(torch.ones(entries, dtype=torch.bool)).sum() == sum(
        (1 << min(8, entries - start)) - 1 for start in range(0, entries, 8)
    )  # the padding is 0


@pytest.mark.parametrize("entries", [5, 64, 100])
@pytest.mark.parametrize("zeros", [False, True], ids=["no zeros", "zeros"])
def test_linear_equals_the_simulated_layer(entries: int, zeros: bool) -> None:
    torch.manual_seed(entries)
    layer, x = BinaryLinear(entries, 9), torch.randn(2, 6, entries)
    if zeros:
        x[torch.rand(x.shape) < 0.3] = 0
        with torch.no_grad():
            layer.weight[4] = 0.5  # a constant row: its bias alone
    y = layer(x)
    centred = layer.centred_weight()
    planes = (pack_nonzeros(x), pack_nonzeros(centred)) if zeros else (None, None)
    args = (pack_signs(x), pack_signs(centred), entries)
    assert torch.equal(packed_dot(*args, *planes), (x.sign() @ centred.sign().T).int())
    packed = packed_linear(*args, layer.scale().flatten(), layer.bias, *planes)
    torch.testing.assert_close(packed, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("tokens", "width"), [(1, 16), (13, 24), (65, 32), (70, 64)])
def test_attention_equals_the_simulated_layer(tokens: int, width: int) -> None:
    """Integers, the active set by Hamming distance, sums: all exact."""
    torch.manual_seed(tokens)
    q, k, v = torch.randn(3, 2, 2, tokens, width)
    layer = BinaryAttention(2 * width, 2)
    wanted = layer.attend(*(t.transpose(1, 2).flatten(2) for t in (q, k, v)))
    dot = packed_dot(pack_signs(q), pack_signs(k), width)
    active = active_keys(dot, width)
    assert torch.equal(packed_sums(pack_bits(active), pack_signs(v.mT)), wanted.int())


def test_impossible_bits() -> None:
    with pytest.raises(UserError, match="65 entries need 16"):
        unpack_bits(torch.zeros(2, 8, dtype=torch.uint8), 65)
    with pytest.raises(UserError, match="1 of 3 numbers"):
        pack_signs(torch.tensor([1.0, float("nan"), 2.0]), check=True)
