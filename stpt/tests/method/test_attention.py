"""Local, global and factorised attention against full attention written out, with masks."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpt.method import bfloat16_attention
from stpt.method.attention import WHOLE, FactorisedAttention, GlobalAttention, LocalAttention, attention

CASES = {
    "divides": ((4, 6, 4), (2, 3, 2)),
    "padded on one side": ((4, 6, 4), (2, 4, 2)),
    "padded everywhere": ((5, 4, 3), (3, 3, 2)),
    "shrinks to the map": ((4, 2, 3), (2, 8, 8)),
    "whole map": ((3, 4, 2), (WHOLE, WHOLE, WHOLE)),
}
each_case = pytest.mark.parametrize(("size", "window"), CASES.values(), ids=CASES.keys())


def randomised(module: nn.Module) -> nn.Module:
    """Weights and biases of a size at which every part matters, in float64."""
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def window_ids(size: Sequence[int], window: Sequence[int]) -> Tensor:
    """(N,): the number of each token's window."""
    places = [torch.arange(side) // min(w, side) for side, w in zip(size, window, strict=True)]
    return torch.stack(torch.meshgrid(*places, indexing="ij"), -1).flatten(0, 2) @ torch.tensor([10_000, 100, 1])


def written_out(layer: LocalAttention, x: Tensor, mask: Tensor) -> Tensor:
    """Full attention over all tokens, token by token, where `mask` (N, N) allows it."""
    tokens = x.flatten(1, 3)
    q, k, v = layer.qkv(tokens).chunk(3, -1)
    heads = []
    for columns in torch.arange(x.shape[-1]).chunk(layer.heads):
        scores = q[..., columns] @ k[..., columns].transpose(1, 2) * len(columns) ** -0.5
        heads.append(scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v[..., columns])
    return layer.proj(torch.cat(heads, -1)).reshape(x.shape)


@each_case
def test_local_is_full_attention_under_a_mask_of_windows(size: Sequence[int], window: Sequence[int]) -> None:
    layer, x = randomised(LocalAttention(6, 2, window)), torch.randn(2, *size, 6, dtype=torch.float64)
    assert isinstance(layer, LocalAttention)
    ids = window_ids(size, window)
    torch.testing.assert_close(layer(x), written_out(layer, x, ids[:, None] == ids))


@each_case
def test_a_token_reaches_its_own_window_alone(size: Sequence[int], window: Sequence[int]) -> None:
    layer, x = randomised(LocalAttention(6, 2, window)), torch.randn(1, *size, 6, dtype=torch.float64)
    ids = window_ids(size, window)
    for token in (0, len(ids) // 2, len(ids) - 1):
        changed = x.flatten(1, 3).clone()
        changed[:, token] += 1
        moved = (layer(changed.view_as(x)) - layer(x)).flatten(1, 3).abs().amax(-1)[0]
        assert torch.equal(moved > 0, ids == ids[token])


def test_a_window_as_large_as_the_map_is_global_attention() -> None:
    local = randomised(LocalAttention(6, 2, (5, 4, 3)))
    everywhere = GlobalAttention(6, 2).double()
    everywhere.load_state_dict(local.state_dict())
    x = torch.randn(2, 5, 4, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(everywhere(x), local(x))


@pytest.mark.parametrize("size", [(4, 4, 2), (5, 3, 3)], ids=["divides", "padded"])
@pytest.mark.parametrize("kind", ["depthwise", "avg", "max", "conv"])
def test_reduced_keys_are_those_of_cubes_padded_with_zeros(kind: str, size: Sequence[int]) -> None:
    ratio = (1, 2, 2) if kind == "conv" else (2, 2, 2)
    layer, x = randomised(GlobalAttention(6, 2, ratio, kind)), torch.randn(2, *size, 6, dtype=torch.float64)
    assert isinstance(layer, GlobalAttention)
    padded = torch.zeros(2, *(-(-side // r) * r for side, r in zip(size, ratio, strict=True)), 6, dtype=torch.float64)
    padded[:, : size[0], : size[1], : size[2]] = x
    cubes = []
    for t in range(0, padded.shape[1], ratio[0]):
        for h in range(0, padded.shape[2], ratio[1]):
            for w in range(0, padded.shape[3], ratio[2]):
                cube = padded[:, t : t + ratio[0], h : h + ratio[1], w : w + ratio[2]].flatten(1, 3)  # (2, r, C)
                if kind in ("avg", "max"):
                    cubes.append(cube.mean(1) if kind == "avg" else cube.amax(1))
                    continue
                weight = layer.reduction.weight.flatten(2)  # (C, 1 or C, r)
                form = "brc,cr->bc" if kind == "depthwise" else "brc,ocr->bo"
                weight = weight[:, 0] if kind == "depthwise" else weight
                cubes.append(torch.einsum(form, cube, weight) + layer.reduction.bias)
    keys, values = layer.kv(layer.reduction_norm(torch.stack(cubes, 1))).chunk(2, -1)
    found = layer.queries_keys_values(x)
    for ours, plain in zip(found, (layer.q(x.flatten(1, 3)), keys, values), strict=True):
        torch.testing.assert_close(ours.transpose(1, 2).flatten(2), plain)
    scores = torch.einsum("bhqd,bhkd->bhqk", found[0], found[1]) * 3**-0.5
    plain = layer.proj((scores.softmax(-1) @ found[2]).transpose(1, 2).flatten(2)).reshape(x.shape)
    torch.testing.assert_close(layer(x), plain)


def test_factorised_is_space_then_time() -> None:
    layer, x = randomised(FactorisedAttention(6, 2)), torch.randn(2, 4, 3, 2, 6, dtype=torch.float64)
    assert isinstance(layer, FactorisedAttention)
    frames, places = window_ids((4, 3, 2), (1, 3, 2)), window_ids((4, 3, 2), (4, 1, 1))
    space = written_out(layer.space, x, frames[:, None] == frames)
    time = written_out(layer.time, layer.norm(x + space), places[:, None] == places)
    torch.testing.assert_close(layer(x), space + time)


@pytest.mark.parametrize(
    "layer",
    [
        LocalAttention(4, 2, (2, 2, 2)),
        LocalAttention(4, 2, (3, 3, 3)),
        GlobalAttention(4, 2),
        GlobalAttention(4, 2, (2, 2, 2)),
        GlobalAttention(4, 2, (3, 2, 2), "conv"),
    ],
    ids=["local", "local padded", "global", "reduced", "reduced and padded"],
)
def test_gradients(layer: nn.Module) -> None:
    """Against finite differences, of the input and of every weight, on a 4x4x4 map."""
    randomised(layer)
    x = torch.randn(1, 4, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)

    def forward(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(forward, (x, *values), fast_mode=True)


def test_what_cannot_be_is_refused() -> None:
    for build, told in (
        (lambda: LocalAttention(6, 4, (2, 2, 2)), "6 channels cannot be shared by 4 heads"),
        (lambda: LocalAttention(6, 2, (2, 0, 2)), r"window \(2, 0, 2\) must be three sizes from 1 on"),
        (lambda: GlobalAttention(6, 2, (2, 2)), r"reduction \(2, 2\) must be three sizes"),
        (lambda: GlobalAttention(6, 2, (2, 2, 2), "median"), "reduction by 'median'; the kinds are depthwise"),
    ):
        with pytest.raises(ValueError, match=told):
            build()


@pytest.mark.parametrize("scores", [1, 200, 1 << 20])
def test_bfloat16_by_products_is_attention(monkeypatch: pytest.MonkeyPatch, scores: int) -> None:
    """A head, some or all at a time; as near to the exact result as the fused form. Only without gradients."""
    monkeypatch.setattr(bfloat16_attention, "_HAS_PRODUCTS", True)
    monkeypatch.setattr(bfloat16_attention, "SCORES", scores)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, size, 8, generator=generator).bfloat16() for size in (9, 11, 11))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert not bfloat16_attention.by_products(q)
    with torch.inference_mode():
        assert bfloat16_attention.by_products(q) and not bfloat16_attention.by_products(q.float())
        ours, fused = bfloat16_attention.attend(q, k, v), F.scaled_dot_product_attention(q, k, v)
        assert torch.equal(attention(q, k, v), ours)
        assert ours.shape == q.shape and ours.dtype == torch.bfloat16
        errors = [(x.double() - exact).norm() / exact.norm() for x in (ours, fused)]
    assert errors[0] < 0.01 and errors[0] < 2 * errors[1]
