"""Attention with focus against `torch.nn.MultiheadAttention`: values, focus and gradients, and what it stores."""

import pytest
import torch
from torch import Tensor, nn

from faseg.method import attention
from faseg.method.attention import Attention, reset_full_rows
from paperkit.errors import UserError

BATCH, QUERIES, KEYS, WIDTH, HEADS = 2, 5, 24, 16, 4


def made(dtype: torch.dtype = torch.float64) -> tuple[Attention, list[Tensor], Tensor]:
    """A layer; query, key, value and positions with gradients; a mask without full rows."""
    torch.manual_seed(3)
    layer = Attention(WIDTH, HEADS).to(dtype)
    nn.init.normal_(layer.in_proj_bias)
    lengths = (QUERIES, KEYS, KEYS, KEYS)
    given = [torch.randn(BATCH, length, WIDTH, dtype=dtype, requires_grad=True) for length in lengths]
    return layer, given, reset_full_rows(torch.rand(BATCH, QUERIES, KEYS) < 0.6)


def stored(layer: Attention, given: list[Tensor], mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same by torch's module, whose probabilities are kept."""
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=given[0].dtype)
    theirs.load_state_dict(layer.state_dict())
    values, looked = theirs(*given[:3], attn_mask=mask.repeat_interleave(HEADS, 0), average_attn_weights=True)
    return values, looked @ given[3], looked


@pytest.mark.parametrize("held", [1, 2 * BATCH * QUERIES * KEYS, 2**20])
def test_equals_stored_probabilities(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is held at a time: one head, two, all."""
    monkeypatch.setitem(attention.SCRATCH, "cpu", held)
    layer, given, mask = made()
    ours = layer(*given[:3], mask, positions=given[3], want_map=True)
    values, focus, looked = stored(layer, given, mask)
    torch.testing.assert_close((ours.values, ours.focus, ours.map), (values, focus, looked.detach()))
    weights = torch.randn_like(values), torch.randn_like(focus)
    found, wanted = (
        torch.autograd.grad((v * weights[0]).sum() + (f * weights[1]).sum(), given)
        for v, f in ((ours.values, ours.focus), (values, focus))
    )
    torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        torch.testing.assert_close(layer(*given[:3], mask, positions=given[3]).focus, focus.detach())


def test_gradients_of_one_output_alone() -> None:
    layer, given, mask = made()
    for name, theirs in (("values", 0), ("focus", 1)):
        ours = getattr(layer(*given[:3], mask, positions=given[3]), name)
        found = torch.autograd.grad(ours.square().sum(), given, materialize_grads=True)
        wanted = torch.autograd.grad(stored(layer, given, mask)[theirs].square().sum(), given, materialize_grads=True)
        torch.testing.assert_close(found, wanted)


def test_keeps_no_probabilities() -> None:
    """For the backward pass nothing as large as all heads' probabilities is kept, nor any Q x N x C."""
    torch.manual_seed(0)
    queries, keys = 64, 128
    layer = Attention(WIDTH, HEADS)
    x, memory = torch.randn(1, queries, WIDTH), torch.randn(1, keys, WIDTH)
    sizes: list[int] = []

    def keep(t: Tensor) -> Tensor:
        sizes.append(t.numel() * t.element_size())
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(x, memory, memory, torch.zeros(1, queries, keys, dtype=torch.bool), positions=memory)
    assert sizes and max(sizes) <= 4 * max(queries, keys) * WIDTH  # of the size of the inputs


def test_half_precision_sums_in_single() -> None:
    layer, given, mask = made(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(*given[:3], mask, positions=given[3])
    whole = layer(*given[:3], mask, positions=given[3])
    assert half.values.dtype == torch.bfloat16 and half.focus.dtype == torch.float32
    torch.testing.assert_close(half.focus, whole.focus, atol=0.02, rtol=0.02)
    half.focus.sum().backward()
    assert all(t.grad is None or t.grad.isfinite().all() for t in given)


def test_no_key_gives_the_last_bias() -> None:
    layer, given, _ = made()
    none = given[1][:, :0]
    assert torch.equal(layer(given[0], none, none).values, layer.out_proj.bias.expand(BATCH, QUERIES, -1))


def test_full_rows_are_opened() -> None:
    mask = torch.tensor([[[True, True], [True, False]]])
    assert reset_full_rows(mask).tolist() == [[[False, False], [True, False]]]


def test_heads_must_divide_channels() -> None:
    with pytest.raises(UserError, match="3 heads do not divide 16 channels"):
        Attention(16, 3)
