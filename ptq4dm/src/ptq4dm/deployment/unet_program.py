"""The steps of diffusers' `UNet2DModel` and `UNet2DConditionModel`, block by block as in their forward passes.

What stands here is the common case: ResBlocks, attention blocks, transformer blocks, up- and downsampling by
convolution. Anything else raises `UnsupportedError` with its name, and the network runs module by module.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ptq4dm.deployment.kernels import Kernels
from ptq4dm.deployment.program import GEGLU, SILU, Field, Norm, Program, SizeError, UnsupportedError

RESNETS = ("ResnetBlock2D",)
BLOCKS = ("DownBlock2D", "UpBlock2D", "AttnDownBlock2D", "AttnUpBlock2D", "CrossAttnDownBlock2D", "CrossAttnUpBlock2D",
          "UNetMidBlock2D", "UNetMidBlock2DCrossAttn")  # fmt: skip
ABSENT = ("encoder_hid_proj", "add_embedding", "time_embed_act", "position_net")
"""Parts of a conditional U-Net that have no steps here."""


def _known(module: nn.Module, *names: str) -> nn.Module:
    if type(module).__name__ not in names:
        raise UnsupportedError(f"module {type(module).__name__}")
    return module


@dataclass
class UNetProgram:
    """A U-Net for one size of input: `sample` (B, H, W, C), `time` (B, D), `context` (B, T, E), `labels` (B, 4 D)."""

    network: Any
    program: Program
    sample: Field
    time: Field
    context: Field | None
    labels: Field | None
    output: Field

    def __post_init__(self) -> None:
        """What a call needs, once: calls of small networks take less time than a few operations of PyTorch."""
        view, projection = self.program.view, self.network.time_proj
        fields = (self.sample, self.time, self.context, self.labels, self.output)
        self._views = [None if field is None else view(field) for field in fields]
        half = projection.num_channels // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32) / (half - projection.downscale_freq_shift)
        self._frequencies, self._scale = exponent.exp(), projection.scale
        time: Any = self._views[1]
        parts = time.flatten(1).split(half, 1)
        self._sine, self._cosine = parts[::-1] if projection.flip_sin_to_cos else parts

    @torch.no_grad()
    def __call__(self, sample: Tensor, timesteps: Tensor, context: Tensor | None, labels: Tensor | None) -> Tensor:
        """Predicted noise (B, C, H, W) of `sample` (B, C, H, W) at `timesteps` (B,); one call at a time."""
        x, _, given, classes, noise = self._views
        assert x is not None and noise is not None
        angles = self._scale * (timesteps[:, None].float() * self._frequencies)
        found = noise.permute(0, 3, 1, 2)
        x.copy_(sample.permute(0, 2, 3, 1))
        torch.sin(angles, out=self._sine)
        torch.cos(angles, out=self._cosine)
        if given is not None and context is not None:
            given.copy_(context[:, None])
        if classes is not None and labels is not None:
            classes.copy_(self.network.class_embedding(labels)[:, None, None])
        self.program.run()
        return torch.empty(found.shape, dtype=sample.dtype).copy_(found)  # never the program's own memory


def build(
    network: Any, kernels: Kernels, shape: tuple[int, int, int, int], context: tuple[int, int] | None
) -> UNetProgram:
    """The steps of a network for samples of one shape (B, C, H, W) and contexts of (T, E).

    Raises:
        UnsupportedError: a part that has no steps here, named.
        SizeError: a shape that does not fit the network, or that it treats in a way of its own.
    """
    settings = network.config
    if (context is None) == isinstance(network, UNet2DConditionModel):
        raise SizeError("contexts go with a conditional U-Net, and with no other")
    if settings.block_out_channels[0] % 2:
        raise UnsupportedError("a time embedding of odd width")
    if settings.get("center_input_sample") or settings.get("time_embedding_type", "positional") != "positional":
        raise UnsupportedError("a centred sample or another time embedding than the positional one")
    for name in ABSENT:
        if getattr(network, name, None) is not None:
            raise UnsupportedError(name)
    embedding = network.time_embedding
    if embedding.cond_proj is not None or embedding.post_act is not None or type(embedding.act) is not nn.SiLU:
        raise UnsupportedError("a conditioned time embedding")
    batch, channels, height, width = shape
    p = Program(kernels)
    sample = p.values(batch, height, width, channels, kept=True)
    time = p.values(batch, 1, 1, settings.block_out_channels[0], kept=True)
    given = p.values(batch, 1, *context, kept=True) if context is not None else None
    labels = None
    if network.class_embedding is not None:
        if type(network.class_embedding) is not nn.Embedding or settings.get("class_embeddings_concat"):
            raise UnsupportedError(f"class embedding {type(network.class_embedding).__name__}")
        labels = p.values(batch, 1, 1, network.class_embedding.embedding_dim, kept=True)
    emb = p.layer(embedding.linear_2, p.layer(embedding.linear_1, time), activation=SILU, residual=labels)
    walk = _Walk(p, emb, given)
    x = p.layer(network.conv_in, sample)
    skips = [x]
    for block in network.down_blocks:
        x = walk.down(block, x, skips)
    if network.mid_block is not None:
        x = walk.middle(network.mid_block, x)
    for block in network.up_blocks:
        x = walk.up(block, x, skips)
    if network.conv_norm_out is None or type(network.conv_act) is not nn.SiLU:
        raise UnsupportedError("another end than group norm, SiLU, convolution")
    output = p.layer(network.conv_out, x, norm=Norm.of(network.conv_norm_out), activation=SILU, kept=True)
    p.finish()
    return UNetProgram(network, p, sample, time, given, labels, output)


@dataclass
class _Walk:
    """Blocks of a network under construction, with the time embedding and context that they share."""

    program: Program
    emb: Field
    context: Field | None

    def down(self, block: Any, x: Field, skips: list[Field]) -> Field:
        _known(block, *BLOCKS)
        attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            x = self.attend(attention, self.resnet(resnet, [x]))
            skips.append(x)
        for sampler in block.downsamplers or []:
            conv: Any = _known(sampler, "Downsample2D").conv
            if sampler.norm is not None or not sampler.use_conv:
                raise UnsupportedError("downsampling by pooling")
            uneven = (0, 0, 1, 1) if sampler.padding == 0 else None
            x = self.program.layer(conv, x, padding=uneven)
            skips.append(x)
        return x

    def middle(self, block: Any, x: Field) -> Field:
        _known(block, *BLOCKS)
        x = self.resnet(block.resnets[0], [x])
        for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
            x = self.resnet(resnet, [self.attend(attention, x)])
        return x

    def up(self, block: Any, x: Field, skips: list[Field]) -> Field:
        _known(block, *BLOCKS)
        attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            x = self.attend(attention, self.resnet(resnet, [x, skips.pop()]))
        for sampler in block.upsamplers or []:
            _known(sampler, "Upsample2D")
            if (
                sampler.norm is not None
                or sampler.use_conv_transpose
                or not sampler.use_conv
                or not sampler.interpolate
            ):
                raise UnsupportedError("upsampling by other than nearest and convolution")
            x = self.program.layer(sampler.conv, x, enlarge=2)
        return x

    def resnet(self, block: Any, sources: list[Field]) -> Field:
        """`x + conv2(act(norm2(conv1(act(norm1(x))) + time)))`, or with the time embedding as scale and shift."""
        _known(block, *RESNETS)
        if block.upsample is not None or block.downsample is not None or type(block.nonlinearity) is not nn.SiLU:
            raise UnsupportedError("a ResBlock that changes the size")
        p, shift, modulation = self.program, None, None
        if block.time_emb_proj is not None:
            time = p.layer(block.time_emb_proj, self.emb, activation=0 if block.skip_time_act else SILU)
            if block.time_embedding_norm == "scale_shift":
                modulation = time
            elif block.time_embedding_norm == "default":
                shift = time
            else:
                raise UnsupportedError(f"time embedding norm {block.time_embedding_norm}")
        hidden = p.layer(block.conv1, *sources, norm=Norm.of(block.norm1), activation=SILU, shift=shift)
        if block.conv_shortcut is None and len(sources) > 1:
            raise UnsupportedError("a skip connection without a shortcut")
        past = sources[0] if block.conv_shortcut is None else p.layer(block.conv_shortcut, *sources)
        norm = Norm.of(block.norm2, modulation)
        return p.layer(block.conv2, hidden, norm=norm, activation=SILU, residual=past,
                       output_scale=1 / block.output_scale_factor)  # fmt: skip

    def attend(self, module: Any, x: Field) -> Field:
        if module is None:
            return x
        if isinstance(module, Attention):
            norm = None if module.group_norm is None else Norm.of(module.group_norm)
            residual = x if module.residual_connection else None
            return self.attention(module, x, norm, x, norm, residual)
        _known(module, "Transformer2DModel")
        if not module.is_input_continuous:
            raise UnsupportedError("a transformer over codes or patches")
        p = self.program
        hidden = p.layer(module.proj_in, x, norm=Norm.of(module.norm))
        for block in module.transformer_blocks:
            hidden = self.transformer(block, hidden)
        return p.layer(module.proj_out, hidden, residual=x)

    def transformer(self, block: Any, x: Field) -> Field:
        _known(block, "BasicTransformerBlock")
        feed = block.ff.net
        if block.norm_type != "layer_norm" or block.pos_embed is not None or block._chunk_size is not None:
            raise UnsupportedError(f"a transformer block with {block.norm_type}")
        for name, attention in (("norm1", block.attn1), ("norm2", block.attn2)):
            if attention is None:
                continue
            norm = Norm.of(getattr(block, name))
            crossing = block.only_cross_attention if name == "norm1" else attention.is_cross_attention
            if crossing and self.context is None:
                raise UnsupportedError("cross attention without a context")
            other = self.context if crossing and self.context is not None else x
            x = self.attention(attention, x, norm, other, None if crossing else norm, x)
        _known(feed[0], "GEGLU")
        hidden = self.program.layer(feed[0].proj, x, norm=Norm.of(block.norm3))
        return self.program.layer(feed[2], hidden, activation=GEGLU, residual=x)

    def attention(
        self, module: Any, x: Field, norm: Norm | None, other: Field, other_norm: Norm | None, residual: Field | None
    ) -> Field:
        """`to_out(softmax(q k') v) + residual` with q from `x`, k and v from `other`."""
        strange = (module.spatial_norm, module.norm_q, module.norm_k, module.norm_cross, module.add_k_proj)
        if any(part is not None for part in strange) or type(module.processor) not in (AttnProcessor, AttnProcessor2_0):
            raise UnsupportedError("an attention with norms or a processor of its own")
        p = self.program
        q = p.layer(module.to_q, x, norm=norm)
        k, v = (p.layer(layer, other, norm=other_norm) for layer in (module.to_k, module.to_v))
        found = p.attention(q, k, v, module.heads, float(module.scale))
        scale = 1 / module.rescale_output_factor
        if residual is None and scale != 1:
            raise UnsupportedError("a rescaled attention without a residual")
        return p.layer(module.to_out[0], found, residual=residual, output_scale=scale)
