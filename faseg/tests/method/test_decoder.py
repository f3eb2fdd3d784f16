"""The decoder's options, each against what it must equal, and the forms for training and inference."""

from typing import Any

import pytest
import torch
from torch import Tensor

from faseg.method.decoder import Decoder, LayerTrace
from paperkit.errors import UserError

WIDTH, CLASSES, QUERIES = 16, 3, 4
SIZES = {"num_classes": CLASSES, "hidden_dim": WIDTH, "num_queries": QUERIES, "nheads": 2, "dim_feedforward": 24}
Maps = tuple[list[Tensor], list[Tensor], Tensor]


def made(**options: Any) -> Decoder:
    torch.manual_seed(1)
    return Decoder(**{**SIZES, "layers": 6, "omega": 2, **options}).eval()


def maps(height: int = 2, width: int = 3, batch: int = 2, channels: int = WIDTH) -> Maps:
    """Features, positions and mask features for a coarse grid of that size."""
    torch.manual_seed(2)
    sizes = [(height * 2**level, width * 2**level) for level in range(4)]
    features, positions = ([torch.randn(batch, c, *size) for size in sizes] for c in (channels, WIDTH))
    return features, positions, torch.randn(batch, WIDTH, *sizes[3])


def test_defaults_are_the_papers() -> None:
    """What a user gets who names no option (the configs name none)."""
    decoder = Decoder(150)
    assert (decoder.hrca, decoder.omega, decoder.min_windows, decoder.hrca_query_pos) == (True, 32, 0, "learned")
    assert (decoder.attn_threshold, decoder.init_pool) == (0.15, "background")
    assert decoder.query_feat.weight.shape == (100, 256) and len(decoder.transformer_ffn_layers) == 13
    assert decoder.transformer_ffn_layers[0].linear1.out_features == 2048


@torch.no_grad()
def traced(decoder: Decoder, given: Maps) -> tuple[dict[str, Any], list[LayerTrace]]:
    trace: list[LayerTrace] = []
    return decoder(*given, trace=trace), trace


def test_forms_agree() -> None:
    """Inference that makes the last prediction only, and outputs without masks, are those with all."""
    decoder, given = made(), maps()
    whole, last, bare = decoder(*given), decoder(*given, masks="last"), decoder(*given, masks="none")
    assert len(whole["aux_outputs"]) == 6 and last["aux_outputs"] == [] and "pred_masks" not in bare
    torch.testing.assert_close(last["pred_masks"], whole["pred_masks"])
    for full, lean in zip(whole["aux_outputs"], bare["aux_outputs"], strict=True):
        torch.testing.assert_close(lean["pred_logits"], full["pred_logits"])
        masks = torch.einsum("bqc,bchw->bqhw", lean["mask_embeddings"], given[2])
        torch.testing.assert_close(masks, full["pred_masks"], atol=1e-5, rtol=1e-5)


def test_pictures_do_not_mix() -> None:
    decoder, given = made(), maps()
    alone = decoder([f[:1] for f in given[0]], [p[:1] for p in given[1]], given[2][:1])
    torch.testing.assert_close(decoder(*given)["pred_masks"][:1], alone["pred_masks"], atol=1e-5, rtol=1e-5)


def test_omega_1_looks_everywhere() -> None:
    """With all windows kept, high-resolution cross-attention is full attention on the finest map."""
    decoder, given = made(omega=1), maps()
    _, trace = traced(decoder, given)
    fine = decoder._tokens(given[0][3].flatten(2).transpose(1, 2), 3)
    key = fine + given[1][3].flatten(2).transpose(1, 2)
    before, learned = trace[2].output, decoder.query_embed.weight.expand(2, -1, -1)
    full = decoder.transformer_cross_attention_layers[3](before, learned, key, fine).values
    torch.testing.assert_close(trace[3].cross_out, full, atol=1e-5, rtol=1e-5)


def test_queries_move_to_where_they_looked() -> None:
    """The positional query of a layer is the MLP of the previous map times its positions; stale after HRCA."""
    decoder, given = made(), maps()
    _, trace = traced(decoder, given)
    assert [layer.level for layer in trace] == [0, 1, 2, 3, 0, 1]
    for now, before in ((1, 0), (2, 1), (4, 2), (5, 4)):  # layer 4 follows the high-resolution layer 3
        place = given[1][trace[before].level].flatten(2).transpose(1, 2)
        moved = decoder.adapt_pos2d(trace[before].attention @ place + decoder.query_embed.weight)  # type: ignore[misc]
        torch.testing.assert_close(trace[now].query_pos, moved, atol=1e-5, rtol=1e-5)
    assert torch.equal(trace[3].query_pos, decoder.query_embed.weight.expand(2, -1, -1))
    _, other = traced(made(hrca_query_pos="dfpq"), given)
    torch.testing.assert_close(other[3].query_pos, decoder.adapt_pos2d(  # type: ignore[misc]
        trace[2].attention @ given[1][2].flatten(2).transpose(1, 2) + decoder.query_embed.weight
    ), atol=1e-5, rtol=1e-5)  # fmt: skip


def test_both_off_is_mask2former() -> None:
    """Three levels, the learned position in every layer, no further parameter; the fourth map is not read."""
    decoder, given = made(query_pos="learned", hrca=False, attn_threshold=0.5), maps()
    names = decoder.state_dict()
    assert not [name for name in names if "adapt_pos2d" in name] and len(names["level_embed.weight"]) == 3
    outputs, trace = traced(decoder, given)
    assert [layer.level for layer in trace] == [0, 1, 2, 0, 1, 2]
    assert all(torch.equal(layer.query_pos, decoder.query_embed.weight.expand(2, -1, -1)) for layer in trace)
    three = decoder(given[0][:3], given[1][:3], given[2])
    torch.testing.assert_close(three["pred_masks"], outputs["pred_masks"])
    masked = trace[1].attention == 0  # where the previous mask's probability is below a half
    shown = torch.nn.functional.interpolate(outputs["aux_outputs"][1]["pred_masks"], (4, 6), mode="bilinear").flatten(2)
    forbidden = shown.sigmoid() < 0.5
    assert torch.equal(masked, forbidden & ~forbidden.all(-1, keepdim=True))


@pytest.mark.parametrize("change", [
    {"init_pool": "foreground"}, {"attn_threshold": 0.5}, {"omega": 3}, {"query_pos": "learned"}, {"hrca": False},
    {"hrca_query_pos": "dfpq"},
], ids=lambda change: next(iter(change)))  # fmt: skip
def test_every_option_matters(change: dict[str, Any]) -> None:
    given, usual = maps(), made()
    other = made(**change)
    other.load_state_dict({
        name: usual.state_dict()[name][: len(value)] for name, value in other.state_dict().items()
    })  # fmt: skip
    assert (other(*given)["pred_masks"] - usual(*given)["pred_masks"]).abs().max() > 1e-4


def test_a_picture_of_one_cell() -> None:
    """Below omega cells no window is kept, as in the released code, unless one is asked for."""
    given = maps(1, 1)
    none, one = made(omega=32), made(omega=32, min_windows=1)
    assert [t.attention.shape[-1] for t in traced(none, given)[1]][3] == 0
    assert [t.attention.shape[-1] for t in traced(one, given)[1]][3] == 64
    assert none(*given)["pred_masks"].isfinite().all() and one(*given)["pred_masks"].isfinite().all()


def test_projected_features_have_any_width() -> None:
    outputs = made(in_channels=6)(*maps(channels=6))
    assert outputs["pred_masks"].isfinite().all()


def test_half_precision_is_near() -> None:
    decoder, given = made(attn_threshold=0.0, init_pool="background"), maps()
    with torch.autocast("cpu", torch.bfloat16):
        half = decoder(*given, masks="none")
    half["mask_embeddings"].float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in decoder.parameters())
    torch.testing.assert_close(half["pred_logits"].float(), decoder(*given)["pred_logits"], atol=0.1, rtol=0.1)


@pytest.mark.parametrize(("options", "message"), [
    ({"omega": 0}, "omega 0: one in how many windows"),
    ({"layers": 0}, "layers 0: give 1 or more"),
    ({"attn_threshold": 1.5}, "attn_threshold 1.5 is no probability"),
    ({"query_pos": "learned", "hrca_query_pos": "dfpq"}, "hrca_query_pos dfpq needs query_pos dfpq"),
    ({"nheads": 3}, "3 heads do not divide 16 channels"),
])  # fmt: skip
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**options)


def test_bad_maps() -> None:
    features, positions, mask_features = maps()
    with pytest.raises(UserError, match="3 feature maps and 4 of positions; the decoder has 4 levels"):
        made()(features[:3], positions, mask_features)
    with pytest.raises(UserError, match="level 1: features of"):
        made()(features, [positions[0], positions[0], *positions[2:]], mask_features)
    odd = [[*each[:3], each[3][..., :-1]] for each in (features, positions)]
    with pytest.raises(UserError, match="a map of 16x23 is not cut by a grid of 2x3"):
        made()(*odd, mask_features)
