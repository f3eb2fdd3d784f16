"""Weights of 2D networks and of MViT in the backbone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.video import mvit_v1_b

from paperkit.errors import UserError
from stpt.method.backbone import Backbone
from stpt.models.inflation import inflate, inflated, load_mvit
from stpt.models.networks import create_backbone

FLAT: dict[str, Any] = dict(
    dims=(8, 12),
    depths=(1, 1),
    heads=(1, 2),
    kernels=((1, 7, 7), (1, 3, 3)),
    strides=((1, 4, 4), (1, 2, 2)),
    windows=((2, 4, 4), (2, 2, 2)),
    reductions=((1, 1, 1), (1, 1, 1)),
    kinds="LL",
    out_stages=(0, 1),
)


def flat() -> tuple[Backbone, dict[str, Tensor]]:
    """A backbone that sees one frame at a time, and its weights as a 2D network would have them."""
    backbone = Backbone(**FLAT).eval()
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.3)
    # Of one frame, a 3x3x3 convolution sees its middle slice alone.
    state = {name: value[:, :, value.shape[2] // 2] if value.ndim == 5 else value
             for name, value in backbone.state_dict().items()}  # fmt: skip
    assert {value.ndim for value in state.values()} == {1, 2, 4}
    return backbone, state


@pytest.mark.parametrize("how", ["mean", "center"])
def test_a_still_clip_gives_the_pictures_activations(how: str) -> None:
    """Mean: away from the clip's ends, where zeros stand beside it; center: everywhere."""
    still, state = flat()
    moving = Backbone(**{**FLAT, "kernels": ((3, 7, 7), (3, 3, 3))}).eval()
    moving.load_state_dict(inflated(state, moving, how))
    picture = torch.randn(1, 3, 1, 32, 32)
    for flat_map, clip_map in zip(still(picture), moving(picture.expand(-1, -1, 20, -1, -1)), strict=True):
        plain = flat_map.expand_as(clip_map)
        inside = slice(8, 12) if how == "mean" else slice(None)
        torch.testing.assert_close(clip_map[:, :, inside], plain[:, :, inside], rtol=1e-3, atol=1e-4)
        if how == "mean":
            assert not torch.allclose(clip_map[:, :, 0], plain[:, :, 0], rtol=1e-2)


def test_inflated_weights() -> None:
    weight = torch.randn(4, 3, 5, 5)
    mean, center = inflate(weight, 3, "mean"), inflate(weight, 3, "center")
    assert mean.shape == center.shape == (4, 3, 3, 5, 5)
    torch.testing.assert_close(mean.sum(2), weight)
    assert torch.equal(mean[:, :, 0], mean[:, :, 2])
    assert torch.equal(center[:, :, 1], weight) and not center[:, :, ::2].any()
    with pytest.raises(UserError, match="inflation 'first' is none of mean, center"):
        inflate(weight, 3, "first")


def test_mvit_fills_all_but_what_it_lacks() -> None:
    """Torchvision's own network, with numbers: what is loaded, skipped, without a place, left fresh."""
    with torch.device("meta"):
        mvit, backbone = mvit_v1_b(), create_backbone("stpt")
    torch.manual_seed(0)
    state = {name: torch.rand(value.shape).add_(1) for name, value in mvit.state_dict().items()}
    backbone = backbone.to_empty(device="cpu")
    with torch.no_grad():
        for value in backbone.state_dict().values():
            value.zero_()
    report = load_mvit(backbone, state)
    own = backbone.state_dict()
    assert sorted(report.skipped) == sorted(f"blocks.{i}.mlp.3.{end}" for i in (0, 2, 13) for end in ("weight", "bias"))
    places = [f"stages.{i}.blocks.{j}" for i, depth in enumerate((1, 2, 11, 2)) for j in range(depth)]
    fresh = {f"{places[i]}.mlp.fc2.{end}" for i in (0, 2, 13) for end in ("weight", "bias")}
    for name in report.fresh:
        new = (".cpe.", ".reduction.", ".reduction_norm.", ".patch_embed.norm.", ".patch_embed.proj.")
        assert name in fresh or any(part in name for part in new), name
        assert not own[name].any()
    assert all(value.all() for name, value in own.items() if name not in report.fresh)
    assert set(report.loaded) | set(report.fresh) == own.keys()
    assert len(report.loaded) == 2 + 16 * 12 - 6 + 11 * 2  # stage 3 has two layers where MViT has one
    unused = ("pos_encoding.", "norm.", "head.")
    assert all(name.startswith(unused) or ".pool_" in name or ".project." in name for name in report.unused)
    for ours, theirs in (
        ("stages.0.patch_embed.proj.weight", state["conv_proj.weight"]),
        ("stages.1.blocks.0.attn.qkv.weight", state["blocks.1.attn.qkv.weight"]),
        ("stages.2.blocks.4.attn.q.bias", state["blocks.7.attn.qkv.bias"][:384]),
        ("stages.2.blocks.4.attn.kv.weight", state["blocks.7.attn.qkv.weight"][384:]),
        ("stages.3.blocks.1.attn.proj.weight", state["blocks.15.attn.project.0.weight"]),
        ("stages.3.blocks.0.mlp.fc1.weight", state["blocks.14.mlp.0.weight"]),
        ("stages.2.blocks.9.mlp.fc2.weight", state["blocks.12.mlp.3.weight"]),
    ):
        assert torch.equal(own[ours], theirs), ours
    lines = report.lines()
    assert lines[0].startswith("210 loaded") and lines[1].startswith("6 skipped (another shape): blocks.0.mlp.3.weight")
