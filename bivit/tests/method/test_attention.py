"""Attention modules in timm's places: masks, normalisation, precision."""

import pytest
import torch
from timm.models import swin_transformer

from bivit.method.attention import BinaryAttention, WindowAttention, relative_positions, wide_product
from bivit.method.attention_rules import BoolScores, NaiveScores
from bivit.method.distillation import direction_loss, direction_matching, distribution_loss, relations
from paperkit.errors import UserError


def layer(**options: object) -> BinaryAttention:
    torch.manual_seed(0)
    return BinaryAttention(24, 3, **options)  # type: ignore[arg-type]


def test_masks_agree() -> None:
    """Causal, boolean and -inf masks hide the same keys; a query that sees nothing gets proj's value of 0."""
    attention, x = layer(), torch.randn(2, 9, 24)
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1)
    causal = attention(x, is_causal=True)
    assert torch.equal(causal, attention(x, attn_mask=~hidden))
    assert torch.equal(causal, attention(x, attn_mask=torch.zeros(9, 9).masked_fill(hidden, -torch.inf)))
    assert not torch.equal(causal, attention(x))
    torch.testing.assert_close(causal[:, :4], attention(x[:, :4], is_causal=True))
    per_image = torch.ones(2, 1, 9, 9, dtype=torch.bool)
    per_image[1, :, 3] = False
    x.requires_grad_()
    out = attention(x, attn_mask=per_image)
    torch.testing.assert_close(out[1, 3], attention.proj(torch.zeros(24)))
    assert torch.autograd.grad(out.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("scores", [None, BoolScores(), NaiveScores()], ids=["sab", "bool", "naive"])
def test_count_changes_gradients_alone(scores: torch.nn.Module | None) -> None:
    plain, counted = layer(scores=scores), layer(scores=scores, normalize="count")
    x = torch.randn(2, 17, 24, requires_grad=True)
    first, second = plain(x), counted(x)
    torch.testing.assert_close(first, second)
    (g1,), (g2,) = (torch.autograd.grad(y.square().sum(), x) for y in (first, second))
    assert not torch.allclose(g1, g2)
    scaled = layer(scores=scores, v_scale=True)
    torch.testing.assert_close(scaled(x), first)


def test_naive_is_uniform() -> None:
    attention = layer(scores=NaiveScores())
    out = attention(torch.randn(1, 8, 24))
    torch.testing.assert_close(out, out[:, :1].expand_as(out))


def test_window_bias_enters_before_the_rule() -> None:
    """A large bias for one offset leaves that key alone active."""
    attention = WindowAttention(8, 2, (2, 3))
    with torch.no_grad():
        attention.relative_position_bias_table[relative_positions(2, 3)[0, 4]] = 50.0
    seen = {}
    attention.scores.register_forward_hook(lambda module, args, out: seen.update(attn=out))
    attention(torch.randn(4, 6, 8))
    assert torch.equal(seen["attn"][:, :, 0], torch.eye(6)[4].expand(4, 2, 6))
    timms = swin_transformer.WindowAttention(8, 2, window_size=(2, 3))
    assert torch.equal(timms.relative_position_index, attention.relative_position_index)


def test_window_mask_repeats_over_images() -> None:
    attention, x = WindowAttention(8, 2, (2, 2)), torch.randn(6, 4, 8)
    mask = torch.zeros(3, 4, 4)
    mask[1, :, 2] = -100
    out = attention(x, mask=mask)
    torch.testing.assert_close(out[:3], attention(x[:3], mask=mask))
    torch.testing.assert_close(out[[0, 2]], attention(x[[0, 2]]))


def test_sums_are_exact_under_autocast() -> None:
    """300 ones add up to 300 and not to what bf16 holds."""
    with torch.autocast("cpu", torch.bfloat16):
        assert wide_product(torch.ones(1, 301), torch.ones(301, 1)).item() == 301
    attention, x = layer().eval(), torch.randn(1, 300, 24)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert attention(x).isfinite().all()


def test_losses() -> None:
    student, teacher = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10, requires_grad=True)
    loss = distribution_loss(student, teacher)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(student, teacher.softmax(-1)))
    loss.backward()
    assert teacher.grad is None
    q = torch.randn(2, 3, 5, 8)
    assert direction_loss(relations(q), 3 * relations(q)).item() == pytest.approx(0, abs=1e-6)
    assert direction_matching([q], [-q]).item() == pytest.approx(2, rel=1e-6)
    with pytest.raises(UserError, match="do not fit"):
        distribution_loss(student, teacher[:, :3])
    with pytest.raises(UserError, match="1 tensors of the student and 2"):
        direction_matching([q], [q, q])


def test_impossible_heads() -> None:
    with pytest.raises(UserError, match="24 channels cannot be split into 5 heads"):
        BinaryAttention(24, 5)
    with pytest.raises(UserError, match="normalize 'mean'"):
        BinaryAttention(24, 3, normalize="mean")  # type: ignore[arg-type]
