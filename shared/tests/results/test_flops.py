"""Multiply-adds against published tables and against hand counts."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from paperkit.results.flops import Counts, MacCounter, count, count_call, on_meta

# Parameters and multiply-adds at 224 px with fvcore's norm terms (table of SN-Net's anchors).
PUBLISHED = {
    "deit_tiny_patch16_224": (5_717_416, 1_258_411_200),
    "deit_small_patch16_224": (22_050_664, 4_608_338_304),
    "deit_base_patch16_224": (86_567_656, 17_582_740_224),
    "swin_tiny_patch4_window7_224": (28_288_354, 4_509_194_496),
    "levit_192": (10_947_069, 661_663_808),
    "levit_256": (18_893_876, 1_133_412_864),
    "resnet18": (11_689_512, 1_819_065_856),
    "resnet50": (25_557_032, 4_111_512_576),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    params, macs = PUBLISHED[name]
    assert count(lambda: timm.create_model(name), (1, 3, 224, 224), norms=True) == Counts(macs, params)


@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_seen_fused_or_not(fused: bool) -> None:
    """DeiT-Ti without norm terms: 12 (12 T D^2 + 2 T^2 D) + patches + head, T 197 tokens, D 192."""
    timm.layers.set_fused_attn(fused)
    try:
        model = timm.create_model("deit_tiny_patch16_224")
    finally:
        timm.layers.set_fused_attn(True)
    assert model.blocks[0].attn.fused_attn is fused
    hand = 12 * (12 * 197 * 192**2 + 2 * 197**2 * 192) + 196 * 768 * 192 + 1000 * 192
    assert count(model, (1, 3, 224, 224)).macs == hand


def test_the_counted_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    model[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    copied = on_meta(model)
    assert all(t.is_meta for t in (*copied.parameters(), *copied.buffers()))
    assert copied[0].weight.requires_grad is False and copied[0].bias.requires_grad is True
    assert count(model, (2, 3), norms=True) == Counts(2 * 3 * 4 + 2 * 2 * 4, 3 * 4 + 4 + 8)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_shared_parameters_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(5, 5, bias=False)
            self.b = nn.Linear(5, 5, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    model = on_meta(Tied())
    assert model.b.weight is model.a.weight
    assert count(Tied, (1, 5)) == Counts(50, 25)


def test_norm_terms() -> None:
    """As fvcore counts them, with and without affine weights, as module and as function."""
    x = (2, 8, 6, 6)
    elements = 2 * 8 * 36
    for layer, expected in [
        (nn.LayerNorm(6), 5),
        (nn.LayerNorm(6, elementwise_affine=False), 4),
        (timm.layers.LayerNorm2d(8), 5),
        (nn.GroupNorm(2, 8), 5),
        (nn.GroupNorm(2, 8, affine=False), 4),
        (nn.BatchNorm2d(8), 2),
        (nn.BatchNorm2d(8, affine=False), 1),
        (timm.layers.BatchNormAct2d(8), 2),
        (nn.AdaptiveAvgPool2d(1), 1),
        (nn.AdaptiveAvgPool2d(3), 1),
        (nn.GELU(), 0),
    ]:
        assert count(layer, x, norms=True).macs == expected * elements, layer
        assert count(layer, x).macs == 0, layer
    weight = torch.ones(6, device="meta")
    assert count_call(lambda t: F.layer_norm(t, (6,), weight, weight), x, norms=True) == 5 * elements
    assert count_call(lambda t: F.adaptive_avg_pool2d(t, 1), x, norms=True) == elements
    assert count_call(lambda t: t.mean(dim=(2, 3)), x, norms=True) == 0


def test_products() -> None:
    a, b = torch.empty(2, 3, 4), torch.empty(2, 4, 5)
    assert count_call(torch.bmm, a, b) == 2 * 3 * 4 * 5
    assert count_call(torch.matmul, (3, 4), (4,)) == 12
    assert count_call(torch.dot, (7,), (7,)) == 7
    assert count_call(lambda q, k: torch.einsum("bnd,bmd->bnm", q, k), (2, 3, 4), (2, 5, 4)) == 2 * 3 * 5 * 4
    assert count(lambda: nn.Conv2d(8, 8, 3, padding=1, groups=4), (1, 8, 5, 5)).macs == 25 * 8 * 2 * 9
    mask = torch.zeros(3, 5, device="meta")
    attend = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # noqa: E731
    assert count_call(attend, (1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 4)) == 2 * (2 * 3 * 5 * 4)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    assert count(attention, *[(1, 3, 8)] * 3).macs == 4 * 3 * 8 * 8 + 2 * 3 * 3 * 8


def test_pieces_add_up() -> None:
    model = on_meta(timm.create_model("deit_tiny_patch16_224")).eval()
    tokens = (1, 197, 192)
    with MacCounter(norms=True) as counter, torch.no_grad():
        x = model.patch_embed(torch.empty(1, 3, 224, 224, device="meta"))
        model.forward_head(model.norm(torch.empty(tokens, device="meta")))
    assert x.shape == (1, 196, 192)
    blocks = sum(count_call(block, tokens, norms=True) for block in model.blocks)
    assert counter.macs + blocks == PUBLISHED["deit_tiny_patch16_224"][1]


def test_method() -> None:
    build = lambda: timm.create_model("deit_tiny_patch16_224")  # noqa: E731
    whole, features = count(build, (1, 3, 224, 224)), count(build, (1, 3, 224, 224), method="forward_features")
    assert whole.macs - features.macs == 192 * 1000 and whole.params == features.params
