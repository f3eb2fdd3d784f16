"""Deformable attention in both forms, and the pixel decoder's options and precisions."""

import math

import pytest
import torch
from torch import Tensor

from faseg.method.deformable_attention import DeformableAttention, _sum_of_grids, _sum_of_rows, cell_centres
from faseg.method.pixel_decoder import PixelDecoder, sine_positions
from paperkit.errors import UserError

SHAPES = [(2, 3), (5, 4), (1, 7)]
TOKENS = sum(height * width for height, width in SHAPES)
CHANNELS = (8, 16, 24, 40)


def drawn(spread: float = 3.0) -> tuple[Tensor, ...]:
    """Values, references that partly lie outside, offsets, weights: batch 2, 6 queries, 4 heads, 5 points."""
    torch.manual_seed(0)
    values, reference = torch.randn(2, TOKENS, 4, 8), torch.rand(2, 6, 3, 2) * 1.6 - 0.3
    return values, reference, spread * torch.randn(2, 6, 4, 3, 5, 2), torch.rand(2, 6, 4, 3, 5)


def maps(height: int = 2, width: int = 3, batch: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    sizes = [(height * s, width * s) for s in (8, 4, 2, 1)]
    return [torch.randn(batch, c, *size) for c, size in zip(CHANNELS, sizes, strict=True)]


def decoder(**options: object) -> PixelDecoder:
    torch.manual_seed(2)
    sizes = dict(layers=1, dim_feedforward=16, nheads=4)
    return PixelDecoder(CHANNELS, 32, 24, **{**sizes, **options}).eval()  # type: ignore[arg-type]


def test_both_forms_agree() -> None:
    results = []
    for form in (_sum_of_rows, _sum_of_grids):
        given = [part.double().requires_grad_() for part in drawn()]
        y = form(*given, SHAPES)  # type: ignore[arg-type]
        results.append([y, *torch.autograd.grad(y.square().sum(), given)])
    for rows, grids in zip(*results, strict=True):
        torch.testing.assert_close(rows, grids)


def test_far_outside_counts_nothing() -> None:
    values, reference, offsets, weights = drawn()
    for far in (1e4, -1e4, 1e30):
        assert torch.equal(_sum_of_rows(values, reference, offsets * 0 + far, weights, SHAPES), torch.zeros(2, 6, 32))
    broken = _sum_of_rows(values, reference, offsets * math.nan, weights, SHAPES)
    assert broken.isnan().all()  # and no index outside of the values


def test_a_place_between_two_pixels() -> None:
    """A quarter of the way from pixel 1 to pixel 2 of a line of four."""
    values = torch.tensor([0.0, 10.0, 20.0, 40.0]).view(1, 4, 1, 1)
    reference, offsets = torch.tensor([(1.5 + 0.25) / 4, 0.5]).view(1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 1, 2)
    for form in (_sum_of_rows, _sum_of_grids):
        assert form(values, reference, offsets, torch.ones(1, 1, 1, 1, 1), [(1, 4)]).item() == pytest.approx(12.5)


def test_first_points_lie_along_eight_directions() -> None:
    bias = DeformableAttention(32, 8, 3, 4).sampling_offsets.bias.view(8, 3, 4, 2)
    expected = torch.tensor([[1.0, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]])
    torch.testing.assert_close(bias[:, 1, 2], 3 * expected)


def test_other_maps_are_refused() -> None:
    attention, x = DeformableAttention(32, 4), torch.randn(1, TOKENS, 32)
    reference = cell_centres(SHAPES, x.device)
    with pytest.raises(UserError, match="2 maps for an attention over 3"):
        attention(x, x, reference, SHAPES[:2])
    with pytest.raises(UserError, match="have 33 tokens, the values 32"):
        attention(x, x[:, 1:], reference, SHAPES)
    with pytest.raises(UserError, match="dim 30 is not a multiple of heads 4"):
        DeformableAttention(30, 4)


def test_sine_is_detr_s() -> None:
    """As DETR writes it: counted places, scaled to 2 pi, sines and cosines side by side, rows first."""
    ones = torch.ones(1, 3, 5)
    rows, columns = ones.cumsum(1), ones.cumsum(2)
    rows, columns = (x / (x[:, -1:, -1:] + 1e-6) * 2 * math.pi for x in (rows, columns))
    lengths = 10000 ** (2 * torch.div(torch.arange(4), 2, rounding_mode="floor") / 4)
    parts = [x[..., None] / lengths for x in (rows, columns)]
    parts = [torch.stack((x[..., 0::2].sin(), x[..., 1::2].cos()), 4).flatten(3) for x in parts]
    expected = torch.cat(parts, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(sine_positions(torch.empty(1, 8, 3, 5)), expected)


@pytest.mark.parametrize("levels", [3, 4])
@pytest.mark.parametrize("key_pos", ["conditional", "sine", "learned"])
def test_options(key_pos: str, levels: int) -> None:
    model = decoder(key_pos=key_pos, levels=levels)
    found = model(maps())
    sizes = [(2, 3), (4, 6), (8, 12), (16, 24)]
    assert [x.shape for x in found.features] == [(2, 32, *size) for size in sizes[:levels]]
    assert [x.shape for x in found.positions] == [x.shape for x in found.features]
    assert found.mask_features.shape == (2, 24, 16, 24)
    sum(p.sum() for p in (*found.features, *found.positions, found.mask_features)).backward()  # type: ignore[union-attr]
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    other = model([x + 1 for x in maps()])
    assert torch.equal(found.positions[1], other.positions[1]) == (key_pos != "conditional")


def test_half_precision_stays_close() -> None:
    """Autocast leaves the decoder in float32; weights of bfloat16 mean bfloat16, but exact places."""
    given = maps()
    exact = decoder()(given).mask_features
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = decoder()(given).mask_features
    assert under.dtype == torch.float32 and torch.equal(under, exact)
    half = decoder().bfloat16()(given).mask_features
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("options", "told"),
    [(dict(key_pos="fourier"), "none of conditional, sine, learned"), (dict(levels=2), "3 or 4 levels"),
     (dict(nheads=3), "dim 32 is not a multiple of heads 3")],
)  # fmt: skip
def test_wrong_options(options: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        decoder(**options)
    with pytest.raises(UserError, match="conv_dim 40 is not a multiple of 32"):
        PixelDecoder(CHANNELS, 40)
