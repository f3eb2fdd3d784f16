"""Sparse entries: the same as a masked dense gradient, nothing dense kept, the frozen weight bit for bit unchanged."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spt.method.sparse
from spt.method.sparse import Places, entry_gradients, frozen_linear
from spt.method.tuned_linear import TunedLinear


def _case(out: int = 7, inner: int = 5, count: int = 6, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, inner, generator=generator, dtype=dtype)
    flat = torch.randperm(out * inner, generator=generator)[:count]
    x = torch.randn(2, 3, inner, generator=generator, dtype=dtype, requires_grad=True)
    values = torch.randn(count, generator=generator, dtype=dtype, requires_grad=True)
    bias = torch.randn(out, generator=generator, dtype=dtype, requires_grad=True)
    return x, weight, flat // inner, flat % inner, values, bias


@pytest.mark.parametrize("worth", [1e9, 0.0], ids=["dense product", "gather"])
@pytest.mark.parametrize("count", [1, 2, 6, 35])
def test_gradcheck(worth: float, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spt.method.sparse, "DENSE_WORTH", worth)
    x, weight, row, col, values, bias = _case(count=count)
    assert torch.autograd.gradcheck(
        lambda a, v, b: frozen_linear(a, weight, b, Places.of(row, col), v), (x, values, bias)
    )


def test_gradcheck_of_what_is_added() -> None:
    """Low-rank parts on overlapping rows, with and without entries."""
    x, weight, row, col, values, bias = _case()
    h = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    ups = [torch.randn(width, 2, dtype=torch.float64, requires_grad=True) for width in (7, 4)]

    def with_entries(a, v, b, low, first, second):
        return frozen_linear(a, weight, b, Places.of(row, col), v, [(0, low, first), (3, low, second)])

    assert torch.autograd.gradcheck(with_entries, (x, values, bias, h, *ups))
    alone = frozen_linear(x, weight, bias, added=[(0, h, ups[0]), (3, h, ups[1])])
    expected = F.linear(x, weight, bias) + h @ ups[0].t() + F.pad(h @ ups[1].t(), (3, 0))
    torch.testing.assert_close(alone, expected)


@pytest.mark.parametrize("worth", [1e9, 0.0], ids=["dense product", "gather"])
def test_equals_the_masked_dense_gradient(worth: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spt.method.sparse, "DENSE_WORTH", worth)
    monkeypatch.setattr(spt.method.sparse, "CHUNK_FLOATS", 100)  # several chunks
    x, weight, row, col, values, bias = _case(64, 48, 300, torch.float32)
    dense = weight.clone()
    dense[row, col] += values.detach()
    dense.requires_grad_()
    cotangent = torch.randn(2, 3, 64)
    (F.linear(x, dense, bias) * cotangent).sum().backward()
    dx, x.grad = x.grad, None
    (frozen_linear(x, weight, bias, Places.of(row, col), values) * cotangent).sum().backward()
    torch.testing.assert_close(values.grad, dense.grad[row, col])
    torch.testing.assert_close(x.grad, dx)


@pytest.mark.parametrize("worth", [1e9, 0.0], ids=["dense product", "gather"])
def test_filled_places_change_nothing(worth: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 128 used rows and columns: both are filled up, once with all of x kept and once with few columns."""
    monkeypatch.setattr(spt.method.sparse, "DENSE_WORTH", worth)
    for inner, columns in ((200, 200), (900, 300)):
        dy, x = torch.randn(7, 300), torch.randn(7, inner)
        row, col = torch.randint(0, 300, (400,)), torch.randint(0, columns, (400,))
        places = Places.of(row, col)
        assert places.rows.numel() % 128 == places.cols.numel() % 128 == 0
        expected = (dy.t() @ x)[row, col]
        torch.testing.assert_close(entry_gradients(dy, x, places), expected)
        torch.testing.assert_close(entry_gradients(dy, x.index_select(1, places.cols), places, few=True), expected)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spt.method.sparse, "DENSE_WORTH", 0.0)
    dy, x = torch.randn(11, 9), torch.randn(11, 8)
    row, col = torch.randint(0, 9, (50,)), torch.randint(0, 8, (50,))
    whole = entry_gradients(dy, x, Places.of(row, col))
    monkeypatch.setattr(spt.method.sparse, "CHUNK_FLOATS", 50)
    torch.testing.assert_close(entry_gradients(dy, x, Places.of(row, col)), whole)
    torch.testing.assert_close(whole, (dy.t() @ x)[row, col])


def test_no_tensor_of_the_weights_size_is_kept_or_given_a_gradient() -> None:
    x, weight, row, col, values, _ = _case(64, 48, 20, torch.float32)
    before, kept = weight.clone(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        y = frozen_linear(x, weight, None, Places.of(row, col), values)
    y.sum().backward()
    assert weight.grad is None and torch.equal(weight, before)
    assert max(kept) < weight.numel()
    assert values.grad.shape == (20,)


def test_a_failing_product_leaves_the_weight_unchanged() -> None:
    _, weight, row, col, values, _ = _case()
    before = weight.clone()
    with pytest.raises(RuntimeError):
        frozen_linear(torch.zeros(2, 99, dtype=torch.float64), weight, None, Places.of(row, col), values)
    assert torch.equal(weight, before)


def test_optimiser_state_is_of_the_chosen_entries_only() -> None:
    torch.manual_seed(0)
    layer = TunedLinear(nn.Linear(48, 64))
    layer.add_entries("weight", torch.tensor([3, 700, 3071]))
    layer.add_entries("bias", torch.tensor([5]))
    trained = [p for p in layer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    layer(torch.randn(4, 48)).square().sum().backward()
    optimizer.step()
    sizes = [v.numel() for state in optimizer.state.values() for k, v in state.items() if k != "step"]
    assert sorted(sizes) == [1, 1, 3, 3]
    changed = (layer.merged_weight() != layer.weight).flatten().nonzero().flatten()
    assert changed.tolist() == [3, 700, 3071]


def test_bfloat16_autocast_runs_and_is_close() -> None:
    x, weight, row, col, values, bias = _case(64, 48, 20, torch.float32)
    exact = frozen_linear(x, weight, bias, Places.of(row, col), values)
    with torch.autocast("cpu", torch.bfloat16):
        y = frozen_linear(x, weight, bias, Places.of(row, col), values)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.2)
    assert values.grad.dtype == torch.float32
    layer = TunedLinear(nn.Linear(48, 64))
    layer.add_module_beside("lora", 4, init="official")
    whole = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().square().sum().backward()
    torch.testing.assert_close(y.float(), whole, rtol=0.05, atol=0.05)
    assert layer.structured.up.weight.grad.dtype == torch.float32
