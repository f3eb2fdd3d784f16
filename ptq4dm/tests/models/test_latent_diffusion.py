"""The three networks of the paper: their sizes, and heads that survive a folder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention

from paperkit.errors import UserError
from ptq4dm.models.latent_diffusion import (
    MODELS,
    FirstStageOptions,
    FixedHeadsUNet2DModel,
    UNetOptions,
    build_first_stage,
    build_unet,
    unet_on_meta,
)
from ptq4dm.models.pipelines import quiet_diffusers

CHURCH: dict[str, Any] = dict(
    image_size=8, in_channels=4, out_channels=4, model_channels=16, attention_resolutions=(1,), num_res_blocks=1,
    channel_mult=(1, 2), num_heads=2, use_scale_shift_norm=True, resblock_updown=True, norm_num_groups=8,
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parameters"), [("cin256-v2", 400.92), ("lsun_beds256", 274.06), ("lsun_churches256", 294.97)]
)
def test_parameters_are_the_papers(name: str, parameters: float) -> None:
    found = sum(parameter.numel() for parameter in unet_on_meta(name).parameters()) / 1e6
    assert round(found, 2) == parameters


@pytest.mark.parametrize(("name", "factor"), [("cin256-v2", 4), ("lsun_churches256", 8)])
def test_first_stages(name: str, factor: int) -> None:
    """Latents of 64 and of 32 pixels a side stand for images of 256."""
    options = MODELS[name].first_stage
    with torch.device("meta"):
        first_stage = build_first_stage(options)
    assert options.factor == factor and MODELS[name].unet.image_size * factor == options.resolution
    if options.kind == "vq":
        assert first_stage.quantize.embedding.weight.shape == (8192, 3)


def test_schedule_is_the_official_one() -> None:
    """20 steps are 1, 51, ..., 951, and the last step's alpha is that of step 0, not 1."""
    scheduler = MODELS["cin256-v2"].scheduler()
    scheduler.set_timesteps(20)
    assert scheduler.timesteps.tolist() == list(range(951, 0, -50))
    assert scheduler.final_alpha_cumprod == scheduler.alphas_cumprod[0]


def test_the_deepest_level_is_joined_by_a_residual_block() -> None:
    """Without attention in the deepest level diffusers' plain block would drop the residual upsampler."""
    names = {name for name, _ in build_unet(UNetOptions(**CHURCH)).named_parameters()}
    assert "up_blocks.0.upsamplers.0.conv1.weight" in names and "up_blocks.0.upsamplers.0.conv.weight" not in names


def test_heads_survive_a_folder(tmp_path: Path) -> None:
    """A plain `UNet2DModel` would be read with other heads, and compute something else without a word."""
    torch.manual_seed(0)
    unet = build_unet(UNetOptions(**CHURCH)).eval()
    with quiet_diffusers():
        unet.save_pretrained(tmp_path)
        again = FixedHeadsUNet2DModel.from_pretrained(tmp_path)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        assert torch.equal(unet(x, t).sample, again(x, t).sample)
    assert {module.heads for module in again.modules() if isinstance(module, Attention)} == {2}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_head_channels": 8}, "either num_heads or num_head_channels"),
        ({"context_dim": 4}, "stand together"),
        ({"channel_mult": (2, 2)}, "begin with 1"),
        ({"num_heads": 3}, "16 channels of a U-Net are not a multiple of 3 heads"),
        ({"norm_num_groups": 32}, "16 channels of a U-Net are not a multiple of 32 groups"),
        ({"use_spatial_transformer": True, "context_dim": 4}, "no scale-shift norm"),
    ],
)
def test_options_that_contradict_each_other(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        UNetOptions(**CHURCH | changed)


def test_unknown_and_missing_options() -> None:
    options = {name: value for name, value in CHURCH.items() if name != "norm_num_groups"}
    assert UNetOptions.of_official({**options, "use_checkpoint": True, "legacy": False}, 8) == UNetOptions(**CHURCH)
    with pytest.raises(UserError, match="option n_embed: 4 of a U-Net is not known"):
        UNetOptions.of_official({**options, "n_embed": 4})
    with pytest.raises(UserError, match=r"dropout: 0\.5"):
        UNetOptions.of_official({**options, "dropout": 0.5})
    del options["image_size"]
    with pytest.raises(UserError, match="needs the option image_size"):
        UNetOptions.of_official(options)


def test_a_first_stage_makes_images() -> None:
    options = FirstStageOptions("vq", (1, 2), 3, 16, 8, 1, 16, 4)
    first_stage = build_first_stage(options).eval()
    with torch.no_grad():
        latents = first_stage.encode(torch.randn(1, 3, 16, 16)).latents
        assert latents.shape == (1, 3, 8, 8) and first_stage.decode(latents).sample.shape == (1, 3, 16, 16)
