"""Sparse entries: the same as a masked dense gradient, nothing dense kept, the frozen weight bit for bit unchanged."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spt.sparse
from spt.sparse import Places, entry_gradients, sparse_linear
from spt.tuned_linear import TunedLinear


def _case(out: int = 7, inner: int = 5, count: int = 6, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, inner, generator=generator, dtype=dtype)
    flat = torch.randperm(out * inner, generator=generator)[:count]
    x = torch.randn(2, 3, inner, generator=generator, dtype=dtype, requires_grad=True)
    values = torch.randn(count, generator=generator, dtype=dtype, requires_grad=True)
    bias = torch.randn(out, generator=generator, dtype=dtype, requires_grad=True)
    return x, weight, flat // inner, flat % inner, values, bias


@pytest.mark.parametrize("dense_from", [0.0, 2.0], ids=["dense product", "gather"])
@pytest.mark.parametrize("count", [1, 2, 6, 35])
def test_gradcheck(dense_from: float, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spt.sparse, "DENSE_FROM", dense_from)
    x, weight, row, col, values, bias = _case(count=count)
    assert torch.autograd.gradcheck(
        lambda a, v, b: sparse_linear(a, weight, Places.of(row, col), v, b), (x, values, bias)
    )


@pytest.mark.parametrize("dense_from", [0.0, 2.0], ids=["dense product", "gather"])
def test_equals_the_masked_dense_gradient(dense_from: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spt.sparse, "DENSE_FROM", dense_from)
    monkeypatch.setattr(spt.sparse, "CHUNK_FLOATS", 100)  # several chunks
    x, weight, row, col, values, bias = _case(64, 48, 300, torch.float32)
    dense = weight.clone()
    dense[row, col] += values.detach()
    dense.requires_grad_()
    cotangent = torch.randn(2, 3, 64)
    (F.linear(x, dense, bias) * cotangent).sum().backward()
    dx, x.grad = x.grad, None
    (sparse_linear(x, weight, Places.of(row, col), values, bias) * cotangent).sum().backward()
    torch.testing.assert_close(values.grad, dense.grad[row, col])
    torch.testing.assert_close(x.grad, dx)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spt.sparse, "DENSE_FROM", 2.0)
    dy, x = torch.randn(11, 9), torch.randn(11, 8)
    row, col = torch.randint(0, 9, (50,)), torch.randint(0, 8, (50,))
    whole = entry_gradients(dy, x, row, col)
    monkeypatch.setattr(spt.sparse, "CHUNK_FLOATS", 22)
    assert torch.equal(entry_gradients(dy, x, row, col), whole)


def test_no_tensor_of_the_weights_size_is_kept_or_given_a_gradient() -> None:
    x, weight, row, col, values, _ = _case(64, 48, 20, torch.float32)
    before, kept = weight.clone(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        y = sparse_linear(x, weight, Places.of(row, col), values)
    y.sum().backward()
    assert weight.grad is None and torch.equal(weight, before)
    assert max(kept) < weight.numel()
    assert values.grad.shape == (20,)


def test_a_failing_product_leaves_the_weight_unchanged() -> None:
    _, weight, row, col, values, _ = _case()
    before = weight.clone()
    with pytest.raises(RuntimeError):
        sparse_linear(torch.zeros(2, 99, dtype=torch.float64), weight, Places.of(row, col), values)
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
    exact = sparse_linear(x, weight, Places.of(row, col), values, bias)
    with torch.autocast("cpu", torch.bfloat16):
        y = sparse_linear(x, weight, Places.of(row, col), values, bias)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.2)
    assert values.grad.dtype == torch.float32
