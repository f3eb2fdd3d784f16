"""The denoising networks and first stages of latent diffusion models, as modules of diffusers.

An official `UNetModel` (Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022) is
described by the options of its YAML file; `build_unet` gives the network of diffusers that computes the same. The three
models that PTQD quantises stand at the end.

Shapes: B batch, C latent channels, H height, W width, L context tokens, D context width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from paperkit.errors import UserError

UNet = UNet2DModel | UNet2DConditionModel
FirstStage = VQModel | AutoencoderKL


class FixedHeadsUNet2DModel(UNet2DModel):
    """A `UNet2DModel` whose attention has the same number of heads at every level, as in the churches model.

    diffusers knows only one width of a head for all levels, so a plain `UNet2DModel` cannot hold such a network: it
    would load without a word and compute something else.

    Args:
        heads: of every attention.
        options: those of `UNet2DModel`; `attention_head_dim` must stay None.
    """

    def __init__(self, heads: int = 8, attention_head_dim: int | None = None, **options: Any) -> None:
        super().__init__(attention_head_dim=attention_head_dim, **options)
        self.register_to_config(heads=heads)
        for module in self.modules():
            if isinstance(module, Attention):
                module.heads, module.scale = heads, (module.inner_dim / heads) ** -0.5

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        """What a config may name: diffusers reads it from the signature, which hides behind `options` here."""
        found: set[str] = UNet2DModel._get_init_keys(UNet2DModel)
        return found | {"heads"}


class ClassEmbedding(ModelMixin, ConfigMixin):  # type: ignore[misc]  # both are bases of every model of diffusers
    """The condition of a class-conditional model: one context token per class, the last class being "no class".

    Args:
        classes: the null class included; 1001 for ImageNet.
        width: D.
    """

    @register_to_config
    def __init__(self, classes: int = 1001, width: int = 512) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, width)

    @property
    def null_class(self) -> int:
        """The class that stands for none in classifier-free guidance."""
        return int(self.embedding.num_embeddings) - 1

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) -> (B, 1, D)."""
        tokens: Tensor = self.embedding(labels)
        return tokens[:, None]


@dataclass(frozen=True)
class UNetOptions:
    """Options of the official `UNetModel`, by its own names, and the groups of its norms (32 there, fixed).

    `num_heads` -1 stands for heads of `num_head_channels` channels each.

    Raises:
        UserError: options that no network of diffusers stands for, or that contradict each other.
    """

    image_size: int
    in_channels: int
    out_channels: int
    model_channels: int
    attention_resolutions: tuple[int, ...]
    num_res_blocks: int
    channel_mult: tuple[int, ...]
    num_heads: int = -1
    num_head_channels: int = -1
    use_spatial_transformer: bool = False
    transformer_depth: int = 1
    context_dim: int | None = None
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    norm_num_groups: int = 32

    def __post_init__(self) -> None:
        if (self.num_heads == -1) == (self.num_head_channels == -1):
            raise UserError("a U-Net has either num_heads or num_head_channels, and the other is -1")
        if self.use_spatial_transformer != (self.context_dim is not None):
            raise UserError("use_spatial_transformer and context_dim of a U-Net stand together")
        if self.use_spatial_transformer and (self.use_scale_shift_norm or self.resblock_updown):
            raise UserError("a U-Net with a spatial transformer has no scale-shift norm and no resblock_updown here")
        if not self.channel_mult or self.channel_mult[0] != 1:
            raise UserError(f"channel_mult {list(self.channel_mult)} of a U-Net; diffusers has it begin with 1")
        for width in self.widths:
            if width % self.norm_num_groups:
                raise UserError(f"{width} channels of a U-Net are not a multiple of {self.norm_num_groups} groups")
            if self.num_heads != -1 and width % self.num_heads:
                raise UserError(f"{width} channels of a U-Net are not a multiple of {self.num_heads} heads")

    @classmethod
    def of_official(cls, options: Mapping[str, Any], norm_num_groups: int = 32) -> "UNetOptions":
        """From `unet_config.params` of an official YAML file.

        Raises:
            UserError: a missing or unknown option, besides those of `__init__`.
        """
        ignored = {
            "use_checkpoint": None,
            "legacy": None,
            "use_fp16": None,
            "dropout": 0,
            "dims": 2,
            "num_classes": None,
        }
        known = {field.name for field in fields(cls)} - {"norm_num_groups"}
        for name, value in options.items():
            if name not in known and not (name in ignored and ignored[name] in (None, value)):
                raise UserError(f"option {name}: {value} of a U-Net is not known; known: {', '.join(sorted(known))}")
        given = {name: options[name] for name in known & options.keys()}
        for name in ("attention_resolutions", "channel_mult"):
            if name in given:
                given[name] = tuple(given[name])
        needed = ("image_size", "in_channels", "out_channels", "model_channels", *("attention_resolutions",))
        for name in (*needed, "num_res_blocks", "channel_mult"):
            if name not in given:
                raise UserError(f"a U-Net needs the option {name}")
        return cls(**given, norm_num_groups=norm_num_groups)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, the shallowest first."""
        return tuple(self.model_channels * multiple for multiple in self.channel_mult)

    @property
    def attention(self) -> tuple[bool, ...]:
        """Which levels have attention."""
        return tuple(2**level in self.attention_resolutions for level in range(len(self.channel_mult)))

    def heads(self, width: int) -> int:
        """Heads of an attention over `width` channels."""
        return self.num_heads if self.num_heads != -1 else width // self.num_head_channels


def build_unet(options: UNetOptions) -> UNet:
    """The network of diffusers for the official options, with random weights; on the meta device within its context.

    The deepest level without attention needs `ResnetUpsampleBlock2D` where levels are joined by ResBlocks
    (`resblock_updown`): diffusers' `UpBlock2D` has a plain upsampler whatever `upsample_type` says.
    """
    common: dict[str, Any] = dict(
        sample_size=options.image_size,
        in_channels=options.in_channels,
        out_channels=options.out_channels,
        layers_per_block=options.num_res_blocks,
        block_out_channels=options.widths,
        norm_num_groups=options.norm_num_groups,
        norm_eps=1e-5,
    )
    last = len(options.widths) - 1
    if options.use_spatial_transformer:
        return UNet2DConditionModel(
            **common,
            down_block_types=tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in options.attention),
            up_block_types=tuple("CrossAttnUpBlock2D" if has else "UpBlock2D" for has in options.attention[::-1]),
            cross_attention_dim=options.context_dim,
            transformer_layers_per_block=options.transformer_depth,
            attention_head_dim=tuple(options.heads(width) for width in options.widths),  # of heads the number, there
        )
    kind = "Resnet{}sampleBlock2D" if options.resblock_updown else "{}Block2D"
    down, up = [], []
    for level, has in enumerate(options.attention):
        down.append("AttnDownBlock2D" if has else "DownBlock2D" if level == last else kind.format("Down"))
        up.append("AttnUpBlock2D" if has else "UpBlock2D" if level == 0 else kind.format("Up"))
    common |= dict(
        down_block_types=tuple(down),
        up_block_types=tuple(up[::-1]),
        resnet_time_scale_shift="scale_shift" if options.use_scale_shift_norm else "default",
        downsample_type="resnet" if options.resblock_updown else "conv",
        upsample_type="resnet" if options.resblock_updown else "conv",
        attn_norm_num_groups=options.norm_num_groups,  # without it, scale-shift leaves the middle attention no norm
    )
    if options.num_heads == -1:
        return UNet2DModel(**common, attention_head_dim=options.num_head_channels)
    return FixedHeadsUNet2DModel(**common, heads=options.num_heads)


@dataclass(frozen=True)
class FirstStageOptions:
    """The autoencoder between images and latents, with attention only in its middle.

    Args:
        kind: `vq`, with a codebook, or `kl`.
        channels: of the first level. channel_mult: of every level.
        num_res_blocks: of a level.
        latent_channels: C.
        codes: of the codebook (`vq`), each of C numbers.
        resolution: side of the images, in pixels.
    """

    kind: Literal["vq", "kl"]
    channel_mult: tuple[int, ...]
    latent_channels: int
    codes: int = 0
    channels: int = 128
    num_res_blocks: int = 2
    resolution: int = 256
    norm_num_groups: int = 32

    @property
    def factor(self) -> int:
        """How many pixels a side of a latent's pixel stands for."""
        return int(2 ** (len(self.channel_mult) - 1))


def build_first_stage(options: FirstStageOptions, scale_factor: float = 1.0) -> FirstStage:
    """The autoencoder of diffusers for the options; `scale_factor` multiplies its latents before they are denoised."""
    levels = len(options.channel_mult)
    common: dict[str, Any] = dict(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(options.channels * multiple for multiple in options.channel_mult),
        layers_per_block=options.num_res_blocks,
        latent_channels=options.latent_channels,
        sample_size=options.resolution,
        norm_num_groups=options.norm_num_groups,
        scaling_factor=scale_factor,
    )
    if options.kind == "kl":
        return AutoencoderKL(**common)
    return VQModel(**common, num_vq_embeddings=options.codes, vq_embed_dim=options.latent_channels)


@dataclass(frozen=True)
class LatentDiffusion:
    """A whole model: its networks, its noise schedule, and which of a file's weights are sampled from.

    Args:
        unet, first_stage: the networks.
        linear_start, linear_end: ends of the schedule, linear in the square root of beta over 1000 steps.
        classes: of the class embedding, the null class included; None for an unconditional model.
        use_ema: files keep an average of the weights, and images are drawn from it.
    """

    unet: UNetOptions
    first_stage: FirstStageOptions
    linear_start: float
    linear_end: float
    classes: int | None = None
    use_ema: bool = True

    def scheduler(self) -> DDIMScheduler:
        """The official sampler's steps and sigmas, where the number of steps divides 1000."""
        return DDIMScheduler(
            1000,
            self.linear_start,
            self.linear_end,
            "scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )


_VQ_F4 = FirstStageOptions("vq", (1, 2, 4), 3, codes=8192)
_KL_F8 = FirstStageOptions("kl", (1, 2, 4, 4), 4)

#: The three models of the paper by the names of their released folders.
MODELS: dict[str, LatentDiffusion] = {
    "cin256-v2": LatentDiffusion(  # LDM-4 on ImageNet, 400.92 M parameters
        UNetOptions(
            64, 3, 3, 192, (8, 4, 2), 2, (1, 2, 3, 5), num_heads=1, use_spatial_transformer=True, context_dim=512
        ),
        _VQ_F4, 0.0015, 0.0195, classes=1001, use_ema=False,
    ),
    "lsun_beds256": LatentDiffusion(  # LDM-4 on LSUN bedrooms, 274.06 M
        UNetOptions(64, 3, 3, 224, (8, 4, 2), 2, (1, 2, 3, 4), num_head_channels=32), _VQ_F4, 0.0015, 0.0195,
    ),
    "lsun_churches256": LatentDiffusion(  # LDM-8 on LSUN churches, 294.97 M
        UNetOptions(
            32, 4, 4, 192, (1, 2, 4, 8), 2, (1, 2, 2, 4, 4), num_heads=8, use_scale_shift_norm=True,
            resblock_updown=True,
        ),
        _KL_F8, 0.0015, 0.0155,
    ),
}  # fmt: skip


def model_named(name: str) -> LatentDiffusion:
    """One of `MODELS`.

    Raises:
        UserError: there is none of this name.
    """
    if name not in MODELS:
        raise UserError(f"no model {name!r}; known: {', '.join(MODELS)}")
    return MODELS[name]


def unet_on_meta(name: str) -> UNet:
    """The U-Net of one of `MODELS` without memory: shapes and counts only.

    Raises:
        UserError: there is no such model.
    """
    with torch.device("meta"):
        return build_unet(model_named(name).unet)
