"""The network's equations (sections 3.2 to 3.4 of the paper) written out once more, slowly, on the weights of a model.

Nothing of `litv2` is called: modules are read for their parameters only. Shapes as in `litv2.models.pyramid`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def hilo(layer: Any, x: Tensor) -> Tensor:
    """One window and one head at a time: (B, H, W, D) -> (B, H, W, D)."""
    batch, height, width, _ = x.shape
    s, d = layer.window_size, layer.head_dim
    x = F.pad(x, (0, 0, 0, -width % s, 0, -height % s))
    rows, columns = x.shape[1:3]
    parts = []
    if layer.h_heads:
        q, k, v = layer.h_qkv(x).chunk(3, dim=-1)
        windows = []
        for i in range(0, rows, s):
            line = []
            for j in range(0, columns, s):
                heads = []
                for h in range(layer.h_heads):
                    place = (slice(None), slice(i, i + s), slice(j, j + s), slice(h * d, h * d + d))
                    qw, kw, vw = (t[place].reshape(batch, -1, d) for t in (q, k, v))
                    heads.append(((qw @ kw.mT * layer.scale).softmax(-1) @ vw).view(batch, s, s, d))
                line.append(torch.cat(heads, dim=-1))
            windows.append(torch.cat(line, dim=2))
        parts.append(layer.h_proj(torch.cat(windows, dim=1)))
    if layer.l_heads:
        pooled = torch.stack([
            torch.stack([x[:, i : i + s, j : j + s].mean((1, 2)) for j in range(0, columns, s)], 1)
            for i in range(0, rows, s)
        ], 1).flatten(1, 2)  # fmt: skip
        q, (k, v) = layer.l_q(x).flatten(1, 2), layer.l_kv(pooled).chunk(2, dim=-1)
        heads = [
            (q[..., c] @ k[..., c].mT * layer.scale).softmax(-1) @ v[..., c]
            for c in (slice(h * d, h * d + d) for h in range(layer.l_heads))
        ]
        parts.append(layer.l_proj(torch.cat(heads, -1).view(batch, rows, columns, -1)))
    return torch.cat(parts, -1)[:, :height, :width]


def relative_attention(layer: Any, x: Tensor) -> Tensor:
    """LITv1: a learned bias for each pair of places. (B, H, W, D) -> (B, H, W, D)."""
    batch, height, width, dim = x.shape
    d = dim // layer.num_heads
    q, k, v = layer.qkv(x.flatten(1, 2)).chunk(3, dim=-1)
    places = [(i, j) for i in range(height) for j in range(width)]
    rows = [[(a[0] - b[0] + height - 1) * (2 * width - 1) + a[1] - b[1] + width - 1 for b in places] for a in places]
    heads = []
    for h in range(layer.num_heads):
        c = slice(h * d, h * d + d)
        bias = layer.relative_position_bias_table[:, h][torch.tensor(rows)]
        heads.append((q[..., c] @ k[..., c].mT * d**-0.5 + bias).softmax(-1) @ v[..., c])
    return layer.proj(torch.cat(heads, -1)).view(batch, height, width, dim)


def conv_ffn(layer: Any, x: Tensor) -> Tensor:
    """fc1, depthwise convolution where there is one, GELU, fc2."""
    hidden = layer.fc1(x)
    if hasattr(layer.dwconv, "dwconv"):
        conv = layer.dwconv.dwconv
        padded = F.pad(hidden, (0, 0, 1, 1, 1, 1))
        height, width = x.shape[1:3]
        taps = [padded[:, i : i + height, j : j + width] * conv.weight[:, 0, i, j] for i in range(3) for j in range(3)]
        hidden = torch.stack(taps).sum(0) + conv.bias
    return layer.fc2(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))


def block(layer: Any, x: Tensor) -> Tensor:
    if layer.has_attention:
        mix = hilo if hasattr(layer.attn, "l_heads") else relative_attention
        x = x + mix(layer.attn, layer.norm1(x))
    return x + conv_ffn(layer.mlp, layer.norm2(x))


def sample(x: Tensor, y_bhw: Tensor, x_bhw: Tensor) -> Tensor:
    """Bilinear samples of (B, H, W, C) at places (B, h, w), four corners one by one, zero outside."""
    batch, height, width, _ = x.shape
    first = torch.arange(batch).view(-1, 1, 1)
    out = 0.0
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = y_bhw.floor() + dy, x_bhw.floor() + dx
            share = (1 - (y_bhw - row).abs()) * (1 - (x_bhw - column).abs())
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            r, c = row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()
            out = out + (share * inside)[..., None] * x[first, r, c]
    return out


def merging_sum(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """(offsets (B, h, w, 8), deformable sum (B, h, w, 2C))."""
    conv, (rows, columns) = layer.dconv, (x.shape[1] // 2, x.shape[2] // 2)
    corner = [x[:, i : 2 * rows : 2, j : 2 * columns : 2] for i in (0, 1) for j in (0, 1)]
    offset = conv.conv_offset.bias + sum(
        corner[2 * i + j] @ conv.conv_offset.weight[:, :, i, j].T for i in (0, 1) for j in (0, 1)
    )
    y0, x0 = 2 * torch.arange(rows)[:, None], 2 * torch.arange(columns)
    total = conv.bias
    for t in range(4):
        i, j = divmod(t, 2)
        taken = sample(x, y0 + i + offset[..., 2 * t], x0 + j + offset[..., 2 * t + 1])
        total = total + taken @ conv.weight[:, :, i, j].T
    return offset, total


def merging(layer: Any, x: Tensor) -> Tensor:
    """Deformable sum, BatchNorm (of the batch in training), GELU."""
    y, norm = merging_sum(layer, x)[1], layer.norm_layer
    mean, var = norm.running_mean, norm.running_var
    if layer.training:
        mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2), correction=0)
    return F.gelu((y - mean) / torch.sqrt(var + 1e-5) * norm.weight + norm.bias)


def patch_embed(layer: Any, image: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, H / 4, W / 4, D)."""
    p = layer.patch_size
    image = F.pad(image, (0, -image.shape[3] % p, 0, -image.shape[2] % p))
    return layer.norm(F.conv2d(image, layer.proj.weight, layer.proj.bias, stride=p).permute(0, 2, 3, 1))


def stages(model: Any, image: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of each stage its output before and after the merging."""
    x, found = patch_embed(model.patch_embed, image), []
    for stage in model.layers:
        for one in stage.blocks:
            x = block(one, x)
        before = x
        if stage.downsample is not None:
            x = merging(stage.downsample, x)
        found.append((before, x))
    return found


def logits(model: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """(pooled features, logits)."""
    features = model.norm(stages(model, image)[-1][1]).mean(dim=(1, 2))
    return features, model.head(features)
