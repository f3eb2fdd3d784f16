"""The same network in its plain, unfused form: what the fast paths are tested against and raced with.

It reads the weights of a `litv2.models.pyramid.Pyramid` and computes as the authors' code is written:
tokens (B, N, C) turned to channels-first for every convolution, explicit softmax matrices, torchvision's
deformable convolution, BatchNorm as a layer of its own.

Shapes: B batch, N = H * W tokens, C channels, s window, K keys, n heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from litv2.method.deformable_merging import DeformableMerging
from litv2.method.hilo import HiLo
from litv2.models.classifier import LITv2
from litv2.models.pyramid import Block


def plain_logits(model: LITv2, image: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, classes) of a LITv2 classifier in eval mode."""
    embed = model.patch_embed
    image = F.pad(image, (0, -image.shape[3] % embed.patch_size, 0, -image.shape[2] % embed.patch_size))
    x = embed.proj(image)
    height, width = x.shape[2:]
    x = embed.norm(x.flatten(2).transpose(1, 2))
    for stage in model.each_stage():
        for block in stage.each_block():
            x = plain_block(block, x, height, width)
        if stage.downsample is not None:
            x, height, width = plain_merging(stage.downsample, x, height, width)
    return model.head(model.norm(x).transpose(1, 2).mean(dim=2))


def plain_block(block: Block, x: Tensor, height: int, width: int) -> Tensor:
    """(B, N, C) -> (B, N, C)."""
    if block.has_attention:
        assert isinstance(block.attn, HiLo)
        x = x + plain_hilo(block.attn, block.norm1(x), height, width)
    mlp = block.mlp
    hidden = mlp.fc1(block.norm2(x))
    hidden = hidden.transpose(1, 2).reshape(len(x), -1, height, width).contiguous()
    conv = mlp.dwconv.dwconv
    assert isinstance(conv, nn.Conv2d)
    hidden = conv(hidden).flatten(2).transpose(1, 2)
    return x + mlp.fc2(F.gelu(hidden))


def plain_merging(merging: DeformableMerging, x: Tensor, height: int, width: int) -> tuple[Tensor, int, int]:
    """(B, N, C) -> (B, N / 4, 2C), and the new height and width."""
    image = x.transpose(1, 2).reshape(len(x), -1, height, width).contiguous()
    conv = merging.dconv
    y = deform_conv2d(image, conv.conv_offset(image), conv.weight, conv.bias, stride=(2, 2))
    y = F.gelu(merging.norm_layer(y))
    return y.flatten(2).transpose(1, 2), y.shape[2], y.shape[3]


def plain_hilo(layer: HiLo, x: Tensor, height: int, width: int) -> Tensor:
    """(B, N, D) -> (B, N, D)."""
    batch, s = len(x), layer.window_size
    grid = F.pad(x.view(batch, height, width, -1), (0, 0, 0, -width % s, 0, -height % s))
    rows, columns = grid.shape[1:3]
    parts = []
    if layer.h_heads:
        windows = grid.view(batch, rows // s, s, columns // s, s, -1).transpose(2, 3)
        qkv = layer.h_qkv(windows).reshape(batch, -1, s * s, 3, layer.h_heads, layer.head_dim)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).contiguous()
        out = ((q @ k.transpose(-2, -1)) * layer.scale).softmax(dim=-1) @ v
        out = out.transpose(2, 3).reshape(batch, rows // s, columns // s, s, s, layer.h_dim)
        parts.append(layer.h_proj(out.transpose(2, 3).reshape(batch, rows, columns, layer.h_dim)))
    if layer.l_heads:
        q = layer.l_q(grid).reshape(batch, rows * columns, layer.l_heads, layer.head_dim).permute(0, 2, 1, 3)
        pooled = F.avg_pool2d(grid.permute(0, 3, 1, 2).contiguous(), s) if s > 1 else grid.permute(0, 3, 1, 2)
        kv = layer.l_kv(pooled.flatten(2).transpose(1, 2)).reshape(batch, -1, 2, layer.l_heads, layer.head_dim)
        k, v = kv.permute(2, 0, 3, 1, 4)
        out = ((q @ k.transpose(-2, -1)) * layer.scale).softmax(dim=-1) @ v
        parts.append(layer.l_proj(out.transpose(1, 2).reshape(batch, rows, columns, layer.l_dim)))
    return torch.cat(parts, dim=-1)[:, :height, :width].reshape(batch, height * width, -1)
