"""The pyramid: a block's equation, positional convolutions, sizes, checkpointing, and how far a frame is seen."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperkit.errors import UserError
from paperkit.results.measure import saved_bytes
from stpt.method.backbone import Backbone, Block, LocalConvolution, PositionalConvolution, Stage

SMALL: dict[str, Any] = dict(
    dims=(8, 16, 24, 32),
    depths=(1, 2, 2, 1),
    heads=(1, 2, 3, 4),
    kernels=((3, 7, 7), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((2, 4, 4), (1, 2, 2), (2, 2, 2), (2, 2, 2)),
    windows=((4, 4, 4), (4, 2, 2), (2, 2, 2), (2, 2, 2)),
    reductions=((1, 1, 1), (1, 1, 1), (1, 2, 2), (1, 1, 1)),
)


def small(randomise: bool = True, **changes: Any) -> Backbone:
    """A small backbone in eval mode; its positional convolutions would otherwise be zero."""
    backbone = Backbone(**{**SMALL, **changes}).eval()
    for parameter in backbone.parameters() if randomise else ():
        nn.init.normal_(parameter, std=0.15)
    return backbone


def conv(x: Tensor, layer: nn.Conv3d, **options: Any) -> Tensor:
    """A depth-wise convolution of a map (B, T, H, W, C), by slices: the sum over 27 or 125 shifted maps."""
    half = layer.kernel_size[0] // 2
    padded = F.pad(x, (0, 0, *([half] * 6)))
    T, H, W = x.shape[1:4]
    out = torch.zeros_like(x) + layer.bias
    for t in range(2 * half + 1):
        for h in range(2 * half + 1):
            for w in range(2 * half + 1):
                out = out + padded[:, t : t + T, h : h + H, w : w + W] * layer.weight[:, 0, t, h, w]
    return out


def test_block_is_the_equation() -> None:
    """x + CPE; + attention of the norm; + feed-forward of the norm (exact GELU, four times as wide)."""
    block = small().stages[1].blocks[1]
    assert isinstance(block, Block)
    x = torch.randn(2, 4, 4, 4, 16)
    y = x + conv(x, block.cpe)
    y = y + block.attn(F.layer_norm(y, (16,), block.norm1.weight, block.norm1.bias, 1e-6))
    hidden = block.mlp.fc1(F.layer_norm(y, (16,), block.norm2.weight, block.norm2.bias, 1e-6))
    assert hidden.shape[-1] == 64
    y = y + block.mlp.fc2(0.5 * hidden * (1 + torch.erf(hidden / 2**0.5)))
    torch.testing.assert_close(block(x), y, rtol=1e-4, atol=1e-5)


def test_local_convolution_is_pointwise_depthwise_pointwise() -> None:
    layer = LocalConvolution(8)
    x = torch.randn(1, 6, 5, 4, 8)
    torch.testing.assert_close(layer(x), layer.conv2(conv(layer.conv1(x), layer.depthwise)), rtol=1e-4, atol=1e-5)


def test_patches_overlap_and_are_normalised() -> None:
    embed = small().stages[0].patch_embed
    clip = torch.randn(1, 3, 8, 16, 16)
    centre = F.pad(clip, (3, 3, 3, 3, 1, 1))[:, :, 2:5, 4:11, 8:15]  # around place (1, 1, 2) of the map
    values = (embed.proj.weight * centre).sum((1, 2, 3, 4)) + embed.proj.bias
    plain = F.layer_norm(values, (8,), embed.norm.weight, embed.norm.bias, 1e-6)
    torch.testing.assert_close(embed(clip)[0, 1, 1, 2], plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cpe", ["block", "stage", "none"])
def test_where_positional_convolutions_stand(cpe: str) -> None:
    fresh, backbone = small(randomise=False, cpe=cpe), small(cpe=cpe)
    found = [name for name, module in backbone.named_modules() if isinstance(module, PositionalConvolution)]
    blocks = [f"stages.{i}.blocks.{j}.cpe" for i, depth in enumerate(SMALL["depths"]) for j in range(depth)]
    assert found == {"block": blocks, "stage": [f"stages.{i}.cpe" for i in range(4)], "none": []}[cpe]
    x = torch.randn(1, 4, 4, 4, 16)
    for name in (name for name in found if name.startswith("stages.1.")):
        assert torch.equal(fresh.get_submodule(name)(x), x)  # a block starts without
        assert not torch.allclose(backbone.get_submodule(name)(x), x)
    if cpe == "stage":  # after the first block, before the second
        stage, clip = backbone.stages[1], torch.randn(1, 8, 4, 8, 8)
        assert isinstance(stage, Stage)
        first, second = stage.blocks
        plain = second(stage.cpe(first(stage.patch_embed(clip))))
        torch.testing.assert_close(stage(clip), plain.permute(0, 4, 1, 2, 3))


@pytest.mark.parametrize("kinds", ["LLGG", "CFLG"])
@pytest.mark.parametrize("size", [(16, 32, 32), (15, 33, 47), (1, 4, 4)], ids=["whole", "odd", "one frame"])
def test_any_clip_length_and_size(kinds: str, size: tuple[int, int, int]) -> None:
    backbone = small(kinds=kinds, out_stages=(0, 1, 2, 3))
    maps = backbone(torch.randn(2, 3, *size))
    assert [tuple(m.shape[2:]) for m in maps] == backbone.map_sizes(*size)
    assert [m.shape[1] for m in maps] == list(backbone.out_channels) == [8, 16, 24, 32]
    assert all(m.isfinite().all() for m in maps)
    twice = small(kinds=kinds, out_stages=(3,))
    twice.load_state_dict(backbone.state_dict())
    clips = torch.randn(2, 3, *size)
    torch.testing.assert_close(twice(clips)[0][1], twice(clips[1:])[0][0], rtol=1e-4, atol=1e-5)


def test_names_of_weights() -> None:
    """The names that weight files have."""
    names = set(small().state_dict())
    block = "stages.2.blocks.1"
    for part in ("cpe", "norm1", "attn.q", "attn.kv", "attn.proj", "attn.reduction", "attn.reduction_norm", "norm2",
                 "mlp.fc1", "mlp.fc2"):  # fmt: skip
        assert {f"{block}.{part}.weight", f"{block}.{part}.bias"} <= names
    assert {
        "stages.0.patch_embed.proj.weight",
        "stages.3.patch_embed.norm.bias",
        "stages.0.blocks.0.attn.qkv.bias",
    } <= names
    assert len(names) == sum(
        4 + depth * (2 * 7 + (6 if kind == "reduced" else 0))
        for depth, kind in zip(SMALL["depths"], ("", "", "reduced", ""), strict=True)
    )


@pytest.mark.parametrize(("kinds", "reaches"), [("LLLL", False), ("LLGG", True)])
def test_only_global_attention_sees_far(kinds: str, reaches: bool) -> None:
    """Frames at the start change the last cells of LLGG; those of LLLL stay as they are, to the last bit."""
    backbone, clip = small(kinds=kinds), torch.randn(1, 3, 192, 16, 16)
    changed = clip.clone()
    changed[:, :, :8] += 1
    for before, after in zip(backbone(clip), backbone(changed), strict=True):
        late = (after - before)[:, :, -before.shape[2] // 4 :].abs().max().item()
        assert late > 1e-6 if reaches else late == 0.0
        assert (after - before)[:, :, 0].abs().max() > 1e-3


def test_learned_positions_are_of_place_and_time() -> None:
    backbone = small(randomise=False, cpe="none", pos_embed="abs", size=(16, 32, 32))
    stage = backbone.stages[0]
    assert stage.pos_space.shape == (1, 1, 8, 8, 8) and stage.pos_time.shape == (1, 8, 1, 1, 8)
    still = torch.ones(1, 3, 16, 32, 32)
    with torch.no_grad():
        stage.pos_time[:, 3] += 1
        stage.pos_space[:, :, 2, 5] += 1
    stage.blocks = nn.ModuleList()
    difference = stage(still) - stage.patch_embed(still).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(difference[0, :, 3, 2, 5] - difference[0, :, 3, 2, 4], (
        stage.pos_space[0, 0, 2, 5] - stage.pos_space[0, 0, 2, 4]
    ))  # fmt: skip
    torch.testing.assert_close(difference[0, :, 3, 0, 0] - difference[0, :, 2, 0, 0], (
        stage.pos_time[0, 3, 0, 0] - stage.pos_time[0, 2, 0, 0]
    ))  # fmt: skip
    with pytest.raises(UserError, match=r"a map of \(4, 8, 8\) for learned positions of \(8, 8, 8\)"):
        backbone(torch.zeros(1, 3, 8, 32, 32))


def test_checkpointing_saves_memory_and_changes_nothing() -> None:
    plain, saving = small(drop_path=0.0).train(), small(checkpoint=True, drop_path=0.0).train()
    saving.load_state_dict(plain.state_dict())
    clip = torch.randn(1, 3, 16, 32, 32)
    results = []
    for backbone in (plain, saving):
        sum(m.square().sum() for m in backbone(clip)).backward()
        results.append({name: p.grad for name, p in backbone.named_parameters()})
    torch.testing.assert_close(results[0], results[1])
    kept = [saved_bytes(lambda network=network: network(clip), network) for network in (plain, saving)]
    assert kept[1] < 0.5 * kept[0]


def test_drop_path_grows_from_zero() -> None:
    backbone = small(drop_path=0.5)
    found = [getattr(block.drop_path, "drop_prob", 0.0) for stage in backbone.stages for block in stage.blocks]
    assert found == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_start_of_training() -> None:
    """Deviation 0.02 where there are weights, 0 for biases, 1 for norms."""
    for name, value in small(randomise=False, dims=(16, 32, 48, 64)).state_dict().items():
        if name.endswith("bias") or ".cpe." in name:
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name
        elif value.numel() > 1000:
            assert value.std().item() == pytest.approx(0.02, rel=0.1), name


def test_what_cannot_be_is_refused() -> None:
    for changes, told in (
        ({"heads": (1, 2, 3)}, "3 heads for 4 stages"),
        ({"kinds": "LXGZ"}, "stages of kind 'XZ'; the kinds are L, G, C, F"),
        ({"cpe": "every"}, "cpe 'every' of block, stage, none"),
        ({"pos_embed": "abs"}, "pos_embed 'abs' needs the clips' size"),
        ({"out_stages": (2, 4)}, r"out_stages \(2, 4\) of a backbone with stages 0 to 3"),
        ({"out_stages": ()}, r"out_stages \(\) of a backbone with stages 0 to 3"),
        ({"depths": (-1, 1, 1, 1)}, r"depths \(-1, 1, 1, 1\) must be whole, from 1 on"),
        ({"drop_path": 1.0}, "drop_path 1.0 must be a share from 0 on, below 1"),
        ({"kernels": ((3, 7),) * 4}, r"kernel \(3, 7\) must be three sizes"),
        ({"reduction": "median"}, "reduction by 'median'"),
    ):
        with pytest.raises(ValueError, match=told):
            small(**changes)
