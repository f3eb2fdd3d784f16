"""The supernet against plain forms: slices, relative position, options, what a gradient reaches, rates of drop path."""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from focusformer.method.architecture import SPACES, Architecture, SuperSizes
from focusformer.method.attention import ElasticAttention
from focusformer.method.elastic import ElasticQkv
from focusformer.method.relative_position import RelativePosition2d, official_attention, separable_attention
from focusformer.method.supernet import Supernet
from paperkit.errors import UserError

SMALL = SuperSizes(24, 3, 3, 2.0, head_dim=8, img_size=16, patch_size=4, num_classes=5, max_relative_position=2)
HALF = Architecture(17, (2, 1), (1.5, 0.7))


def made(sizes: SuperSizes, **options: Any) -> Supernet:
    """A supernet of seeded normal weights in float64, in eval mode."""
    torch.manual_seed(0)
    network = Supernet(sizes, **options).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return network.eval()


def test_rows_are_interleaved_and_the_bias_is_not() -> None:
    """Element by element."""
    torch.manual_seed(0)
    for layout in ("contiguous", "interleaved"):
        layer, x = ElasticQkv(6, 18, layout=layout), torch.randn(4)  # type: ignore[arg-type]
        torch.nn.init.normal_(layer.bias)
        y, q = layer(x, 9), 3
        for part in range(3):
            for row in range(q):
                bias = layer.bias[part * q + row] if layout == "contiguous" else layer.bias[3 * row + part]
                wanted = layer.weight[3 * row + part, :4] @ x + bias
                torch.testing.assert_close(y[part * q + row], wanted)


@pytest.mark.parametrize(("side", "clip"), [(1, 2), (2, 5), (4, 2), (5, 14), (6, 3)])
def test_both_forms_of_relative_position_agree(side: int, clip: int) -> None:
    """Forward and backward, with clipped offsets and a narrower head than the tables."""
    torch.manual_seed(1)
    shape = (2, 3, side**2 + 1, 6)
    q, k, v = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3))
    keys, values = RelativePosition2d(8, clip).double(), RelativePosition2d(8, clip).double()
    for table in (*keys.parameters(), *values.parameters()):
        torch.nn.init.normal_(table)
    everything = [q, k, v, *keys.parameters(), *values.parameters()]
    cotangent = torch.randn(shape, dtype=torch.float64)
    results = []
    for form in (official_attention, separable_attention):
        y = form(q, k, v, keys, values, 0.3)
        results.append((y, *torch.autograd.grad((y * cotangent).sum(), everything)))
    for official, separable in zip(*results, strict=True):
        torch.testing.assert_close(separable, official, rtol=1e-10, atol=1e-10)


def test_relative_term_by_its_definition() -> None:
    """One pair of tokens after another: logits and values, class token and clipping included."""
    torch.manual_seed(2)
    side, clip, width = 3, 1, 4
    tokens = side**2 + 1
    q, k, v = (torch.randn(1, 1, tokens, width) for _ in range(3))
    keys, values = RelativePosition2d(width, clip), RelativePosition2d(width, clip)
    for table in (*keys.parameters(), *values.parameters()):
        torch.nn.init.normal_(table)

    def between(tables: RelativePosition2d, i: int, j: int) -> torch.Tensor:
        if i == 0 or j == 0:
            return tables.embeddings_table_v[0] + tables.embeddings_table_h[0]
        (row, column), (row_j, column_j) = divmod(i - 1, side), divmod(j - 1, side)
        down, right = (max(-clip, min(clip, step)) + clip + 1 for step in (row_j - row, column_j - column))
        return tables.embeddings_table_v[down] + tables.embeddings_table_h[right]

    found = separable_attention(q, k, v, keys, values, 0.5)[0, 0]
    for i in range(tokens):
        logits = torch.stack([q[0, 0, i] @ (k[0, 0, j] + between(keys, i, j)) for j in range(tokens)])
        attention = (0.5 * logits).softmax(0)
        wanted = sum(attention[j] * (v[0, 0, j] + between(values, i, j)) for j in range(tokens))
        torch.testing.assert_close(found[i], wanted, rtol=1e-5, atol=1e-5)


def test_no_square_tensor_is_made() -> None:
    """Nothing that the separable form makes or keeps has the N x N entries of an attention map."""
    side, width = 24, 8
    tokens = side**2 + 1
    keys, values = RelativePosition2d(width, 14), RelativePosition2d(width, 14)
    q, k, v = (torch.randn(1, 1, tokens, width, requires_grad=True) for _ in range(3))
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        separable_attention(q, k, v, keys, values, 1.0)
    assert 0 < max(kept) <= tokens * (width + 2 * side) < tokens**2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gp": False},
        {"abs_pos": False},
        {"scale": True},
        {"relative_position": False},
        {"pre_norm": False},
        {"qkv_bias": False},
        {"qkv_bias_layout": "interleaved"},
        {"change_qkv": False, "relative_position": False, "scale": True},
    ],
    ids=str,
)
def test_supernet_by_plain_algebra(changes: dict[str, Any]) -> None:
    """Logits of a sub-network, written out from the state dict with explicit indices."""
    sizes = dataclasses.replace(SMALL, **changes)
    network, images = made(sizes), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    a = HALF if sizes.change_qkv else Architecture(17, (3, 2), (1.5, 0.7))
    s, e, D = network.state_dict(), a.embed, sizes.embed

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * s[f"{name}.weight"][:e] + s[f"{name}.bias"][:e]

    x = F.conv2d(images, s["patch_embed_super.proj.weight"], s["patch_embed_super.proj.bias"], 4)[:, :e]
    x = torch.cat((s["cls_token"][..., :e].expand(2, 1, e), x.flatten(2).mT), 1)
    if sizes.abs_pos:
        x = x + s["pos_embed"][..., :e]
    for i, (h, r) in enumerate(zip(a.heads, a.ratios, strict=True)):
        b = f"blocks.{i}"
        q = 8 * h if sizes.change_qkv else D
        y = norm(x, f"{b}.attn_layer_norm") if sizes.pre_norm else x
        parts = []
        for part in range(3):
            rows = [3 * j + part for j in range(q)] if sizes.change_qkv else [part * q + j for j in range(q)]
            interleaved = sizes.change_qkv and sizes.qkv_bias_layout == "interleaved"
            at = rows if interleaved else [part * q + j for j in range(q)]
            bias = s[f"{b}.attn.qkv.bias"][at] if sizes.qkv_bias else 0.0
            parts.append((y @ s[f"{b}.attn.qkv.weight"][rows, :e].T + bias).unflatten(-1, (h, -1)))
        terms = [torch.zeros(17, 17, q // h, dtype=torch.float64)] * 2
        if sizes.relative_position:
            layer = network.blocks[i].attn
            terms = [layer.rel_pos_embed_k(17), layer.rel_pos_embed_v(17)]
        logits = torch.einsum("bihc,bjhc->bhij", parts[0], parts[1])
        logits = logits + torch.einsum("bihc,ijc->bhij", parts[0], terms[0])
        attention = (logits * (8**-0.5 if sizes.change_qkv else (e // h) ** -0.5)).softmax(-1)
        y = torch.einsum("bhij,bjhc->bihc", attention, parts[2]) + torch.einsum("bhij,ijc->bihc", attention, terms[1])
        y = y.flatten(2) * (D / q if sizes.scale else 1)
        y = x + y @ s[f"{b}.attn.proj.weight"][:e, :q].T + s[f"{b}.attn.proj.bias"][:e]
        x = y if sizes.pre_norm else norm(y, f"{b}.attn_layer_norm")
        hidden = int(e * r)
        y = norm(x, f"{b}.ffn_layer_norm") if sizes.pre_norm else x
        y = y @ s[f"{b}.fc1.weight"][:hidden, :e].T + s[f"{b}.fc1.bias"][:hidden]
        y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
        y = y @ s[f"{b}.fc2.weight"][:e, :hidden].T + s[f"{b}.fc2.bias"][:e]
        y = x + y * (sizes.ratio / r if sizes.scale else 1)
        x = y if sizes.pre_norm else norm(y, f"{b}.ffn_layer_norm")
    if sizes.pre_norm:
        x = norm(x, "norm")
    wanted = (x[:, 1:].mean(1) if sizes.gp else x[:, 0]) @ s["head.weight"][:, :e].T + s["head.bias"]
    torch.testing.assert_close(network(images, a), wanted, rtol=1e-9, atol=1e-9)


def test_nothing_is_kept_of_an_architecture() -> None:
    """Interleaved calls of two architectures give what each gives alone."""
    network, images = made(SMALL), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    alone = network(images, HALF)
    network(images, SMALL.largest)
    assert torch.equal(network(images, HALF), alone)
    assert not list(network.buffers())


def test_gradients_reach_the_slice_alone() -> None:
    """Used tensors have zeros outside of the slice, deeper layers no gradient at all."""
    network = made(SMALL)
    network(torch.randn(2, 3, 16, 16, dtype=torch.float64), HALF).square().sum().backward()
    block = network.blocks[0]
    assert block.fc1.weight.grad[:25, :17].abs().min() > 0
    assert not block.fc1.weight.grad[25:].any() and not block.fc1.weight.grad[:, 17:].any()
    assert not block.attn.qkv.weight.grad[48:].any() and not network.pos_embed.grad[..., 17:].any()
    assert all(parameter.grad is None for parameter in network.blocks[2].parameters())


def test_drop_path_rates_belong_to_the_layers() -> None:
    """A shallow sub-network never sees the full rate; dropping all of a branch leaves its input."""
    network = Supernet(SMALL, drop_path_rate=0.3)
    assert network.path_rates == pytest.approx([0.0, 0.15, 0.3])
    certain = made(dataclasses.replace(SMALL, depth=1)).train()
    certain.path_rates = [0.999999]
    torch.manual_seed(0)
    x = torch.randn(2, 17, 24, dtype=torch.float64)
    assert torch.equal(certain.blocks[0](x, 3, 2.0, 0.0, 0.999999), x)


def test_dropout_shrinks_with_the_width() -> None:
    """p = drop_rate e / D; none in eval mode."""
    network, images = made(SMALL, drop_rate=0.5), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert torch.equal(network(images, HALF), network(images, HALF))
    assert not torch.equal(network.train()(images, HALF), network(images, HALF))
    rates: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "dropout", lambda x, p, training: rates.append(p) or x)
        network(images, HALF)
    assert set(rates) == {0.5 * 17 / 24}


def test_state_dict_is_the_official_one() -> None:
    """Keys and shapes of a released supernet."""
    with torch.device("meta"):
        network = Supernet(SPACES["ti"].sizes)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    top = {
        "pos_embed": (1, 197, 256), "cls_token": (1, 1, 256), "patch_embed_super.proj.weight": (256, 3, 16, 16),
        "patch_embed_super.proj.bias": (256,), "norm.weight": (256,), "norm.bias": (256,),
        "head.weight": (1000, 256), "head.bias": (1000,),
    }  # fmt: skip
    block = {
        "attn.qkv.weight": (768, 256), "attn.qkv.bias": (768,), "attn.proj.weight": (256, 256),
        "attn.proj.bias": (256,), "fc1.weight": (1024, 256), "fc1.bias": (1024,), "fc2.weight": (256, 1024),
        "fc2.bias": (256,),
        **{f"attn.rel_pos_embed_{to}.embeddings_table_{along}": (30, 64) for to in "kv" for along in "vh"},
        **{f"{norm}_layer_norm.{kind}": (256,) for norm in ("attn", "ffn") for kind in ("weight", "bias")},
    }  # fmt: skip
    assert shapes == top | {f"blocks.{i}.{key}": shape for i in range(14) for key, shape in block.items()}


def test_initial_weights() -> None:
    """Truncated normal of std 0.02 and zero biases; the convolution keeps torch's own."""
    torch.manual_seed(0)
    network = Supernet(dataclasses.replace(SPACES["ti"].sizes, depth=1, num_classes=10))
    block = network.blocks[0]
    for weight in (block.attn.qkv.weight, block.fc1.weight, network.head.weight, network.pos_embed):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not block.attn.qkv.bias.any() and not block.fc2.bias.any()
    assert network.patch_embed_super.proj.bias.any()


@pytest.mark.parametrize(
    ("shape", "architecture", "message"),
    [
        ((1, 3, 20, 20), HALF, "images are 3 x 20 x 20; the supernet takes 3 x 16 x 16"),
        ((1, 1, 16, 16), HALF, "images are 1 x 16 x 16"),
        ((1, 3, 16, 16), Architecture(25, (1,), (1.0,)), "embedding width 25 is above the supernet's 24"),
        ((1, 3, 16, 16), Architecture(24, (1,) * 4, (1.0,) * 4), "depth 4 is above the supernet's 3"),
        ((1, 3, 16, 16), Architecture(24, (1, 4), (1.0, 1.0)), "heads 4 is above the supernet's 3"),
        ((1, 3, 16, 16), Architecture(24, (1,), (2.5,)), "MLP ratio 2.5 is above the supernet's 2"),
    ],
)
def test_impossible_call_is_one_line(shape: tuple[int, ...], architecture: Architecture, message: str) -> None:
    with pytest.raises(UserError) as error:
        Supernet(SMALL)(torch.zeros(shape), architecture)
    assert message in str(error.value)


def test_training_after_evaluating() -> None:
    """Constants kept between calls, made under `inference_mode`, serve a backward pass all the same."""
    network = Supernet(dataclasses.replace(SMALL, img_size=28))  # a grid that no other test has
    images = torch.randn(1, 3, 28, 28)
    with torch.inference_mode():
        wanted = network(images, HALF)
    logits = network(images, HALF)
    logits.sum().backward()
    assert torch.equal(logits, wanted) and network.blocks[0].attn.rel_pos_embed_k.embeddings_table_v.grad.any()


def test_half_precision_stays_close() -> None:
    """Under bf16 autocast the separable form differs from float32 no more than the official one does."""
    torch.manual_seed(0)
    layer = ElasticAttention(32, 8, 8, 3)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, errors = torch.randn(2, 17, 32), {}
    for form in ("official", "separable"):
        layer.relative = form  # type: ignore[assignment]
        exact = layer(x, 3)
        with torch.autocast("cpu", torch.bfloat16):
            errors[form] = (layer(x, 3).float() - exact).abs().max() / exact.abs().max()
    assert errors["separable"] < max(2 * errors["official"], 0.02)
