"""`verify` on files that the authors' set does not hold: other sizes, windows, alphas and grids of the same kinds, and
the same files with one result moved, which must fail.

They are made by the network's equations (sections 3.2 to 3.4 of the paper), written out once more, slowly: functions
`book_*` call nothing of `litv2` and read a module for its parameters only. Shapes as in `litv2.models.pyramid`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from made import book_hilo
from safetensors.torch import save_file
from torch import Tensor, nn

from litv2.method.conv_ffn import ConvFFN
from litv2.method.deformable_merging import DeformableMerging
from litv2.method.hilo import HiLo
from litv2.models.backbone import LITv2Backbone
from litv2.models.classifier import LITv2
from litv2.models.pyramid import Block, PatchEmbed
from litv2.verification.kinds import KINDS
from paperkit.verification import verify

Made = tuple[str, dict[str, Any], dict[str, Tensor]]
TINY: dict[str, Any] = dict(embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8])


def book_relative_attention(layer: Any, x: Tensor) -> Tensor:
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


def book_conv_ffn(layer: Any, x: Tensor) -> Tensor:
    """fc1, depthwise convolution where there is one, GELU, fc2."""
    hidden = layer.fc1(x)
    if hasattr(layer.dwconv, "dwconv"):
        conv = layer.dwconv.dwconv
        padded = F.pad(hidden, (0, 0, 1, 1, 1, 1))
        height, width = x.shape[1:3]
        taps = [padded[:, i : i + height, j : j + width] * conv.weight[:, 0, i, j] for i in range(3) for j in range(3)]
        hidden = torch.stack(taps).sum(0) + conv.bias
    return layer.fc2(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))


def book_block(layer: Any, x: Tensor) -> Tensor:
    if layer.has_attention:
        mix = book_hilo if hasattr(layer.attn, "l_heads") else book_relative_attention
        x = x + mix(layer.attn, layer.norm1(x))
    return x + book_conv_ffn(layer.mlp, layer.norm2(x))


def book_sample(x: Tensor, y_bhw: Tensor, x_bhw: Tensor) -> Tensor:
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


def book_merging_sum(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
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
        taken = book_sample(x, y0 + i + offset[..., 2 * t], x0 + j + offset[..., 2 * t + 1])
        total = total + taken @ conv.weight[:, :, i, j].T
    return offset, total


def book_merging(layer: Any, x: Tensor) -> Tensor:
    """Deformable sum, BatchNorm (of the batch in training), GELU."""
    y, norm = book_merging_sum(layer, x)[1], layer.norm_layer
    mean, var = norm.running_mean, norm.running_var
    if layer.training:
        mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2), correction=0)
    return F.gelu((y - mean) / torch.sqrt(var + 1e-5) * norm.weight + norm.bias)


def book_patch_embed(layer: Any, image: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, H / 4, W / 4, D)."""
    p = layer.patch_size
    image = F.pad(image, (0, -image.shape[3] % p, 0, -image.shape[2] % p))
    return layer.norm(F.conv2d(image, layer.proj.weight, layer.proj.bias, stride=p).permute(0, 2, 3, 1))


def book_stages(model: Any, image: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of each stage its output before and after the merging."""
    x, found = book_patch_embed(model.patch_embed, image), []
    for stage in model.layers:
        for one in stage.blocks:
            x = book_block(one, x)
        before = x
        if stage.downsample is not None:
            x = book_merging(stage.downsample, x)
        found.append((before, x))
    return found


def book_logits(model: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """(pooled features, logits)."""
    features = model.norm(book_stages(model, image)[-1][1]).mean(dim=(1, 2))
    return features, model.head(features)


def random_state(module: nn.Module, offsets: float = 0.5) -> dict[str, Tensor]:
    """Every parameter and buffer drawn at random, in place (float64), and returned under the files' names."""
    module.double().eval()
    with torch.no_grad():
        for name, t in [*module.named_parameters(), *module.named_buffers()]:
            if not t.is_floating_point():
                continue
            fan = t[0].numel() if t.ndim > 1 else 1
            t.normal_(std=fan**-0.5 if t.ndim > 1 else 0.3)
            if name.endswith("running_var"):
                t.abs_().add_(0.5)
            elif t.ndim == 1 and "norm" in name and name.endswith("weight"):
                t.add_(1)
            elif "conv_offset" in name:
                t.mul_(offsets)
    return {f"sd.{name}": t for name, t in module.state_dict().items()}


def layer_file(kind: str, config: dict[str, Any], module: nn.Module, by_book: Callable[[Tensor], Tensor]) -> Made:
    """A layer on (2, H, W, dim), with gradients."""
    state = random_state(module)
    x = torch.randn(2, config["H"] * config["W"], config["dim"], dtype=torch.float64, requires_grad=True)
    y = by_book(x.unflatten(1, (config["H"], config["W"]))).flatten(1, 2)
    cotangent = torch.randn_like(y)
    names, parameters = zip(*module.named_parameters(), strict=True)
    grads = torch.autograd.grad(y, (x, *parameters), cotangent)
    tensors = {**state, "in.x": x, "in.cotangent": cotangent, "out.y": y, "grad.x": grads[0]}
    return kind, config, {**tensors, **{f"grad.sd.{n}": g for n, g in zip(names, grads[1:], strict=True)}}


def hilo_file(dim: int, heads: int, window: int, alpha: float, grid: tuple[int, int], **more: Any) -> Made:
    config = dict(dim=dim, num_heads=heads, window_size=window, alpha=alpha, H=grid[0], W=grid[1], padded=True, **more)
    layer = HiLo(dim, heads, window, alpha, more.get("qkv_bias", True), more.get("qk_scale"))
    made = layer_file("hilo", config, layer, lambda x: book_hilo(layer, x))
    lofi = heads if window == 1 else int(heads * alpha)
    config.update(l_heads=lofi, h_heads=heads - lofi, l_dim=lofi * dim // heads, h_dim=(heads - lofi) * dim // heads)
    return made


def block_file(
    dim: int, grid: tuple[int, int], ratio: float, heads: int = 0, window: int = 2, alpha: float = 0.5
) -> Made:
    config: dict[str, Any] = dict(dim=dim, H=grid[0], W=grid[1], mlp_ratio=ratio)
    if heads:
        config.update(num_heads=heads, window_size=window, alpha=alpha)
    block = Block(dim, int(dim * ratio), HiLo(dim, heads, window, alpha) if heads else None, True, 0.0, 0.0)
    return layer_file("block_hilo" if heads else "block_convffn", config, block, lambda x: book_block(block, x))


def ffn_file(dim: int, hidden: int, grid: tuple[int, int]) -> Made:
    layer = ConvFFN(dim, hidden)
    config = dict(dim=dim, hidden=hidden, H=grid[0], W=grid[1])
    return layer_file("conv_ffn", config, layer, lambda x: book_conv_ffn(layer, x))


def merging_file(dim: int, grid: tuple[int, int], offsets: float, train: bool) -> Made:
    layer = DeformableMerging(dim)
    tensors = random_state(layer, offsets)
    x = torch.randn(3, *grid, dim, dtype=torch.float64)
    offset, y = book_merging_sum(layer.train(train), x)
    tensors |= {"in.x": x.flatten(1, 2), "out.offset": offset.permute(0, 3, 1, 2), "out.dconv": y.permute(0, 3, 1, 2)}
    tensors["out.y"] = book_merging(layer, x).flatten(1, 2)
    config = dict(dim=dim, H=grid[0], W=grid[1], kernel_size=2, stride=2, padding=0, mode="det", train=train)
    return "dtm_train" if train else "dtm_eval", config, tensors


def patch_file(dim: int, size: tuple[int, int]) -> Made:
    layer = PatchEmbed(4, 3, dim)
    tensors, image = random_state(layer), torch.randn(2, 3, *size, dtype=torch.float64)
    tensors |= {"in.image": image, "out.y": book_patch_embed(layer, image).permute(0, 3, 1, 2)}
    return "patch_embed_padded", dict(patch_size=4, embed_dim=dim), tensors


def classifier_file(sizes: list[int], **options: Any) -> Made:
    model = LITv2(**TINY, num_classes=10, **options)
    tensors = random_state(model)
    for side in sizes:
        image = torch.randn(2, 3, side, side, dtype=torch.float64)
        tensors |= {f"in.image_{side}": image}
        tensors[f"out.patch_embed_{side}"] = book_patch_embed(model.patch_embed, image).flatten(1, 2)
        for i, (_, after) in enumerate(book_stages(model, image)):
            tensors[f"out.stage{i}_{side}"] = after.flatten(1, 2)
        tensors[f"out.features_{side}"], tensors[f"out.logits_{side}"] = book_logits(model, image)
    return "litv2", dict(TINY, num_classes=10, img_sizes=sizes, **options), tensors


def training_file(side: int, **options: Any) -> Made:
    model = LITv2(**TINY, num_classes=10, **options)
    tensors = random_state(model)
    image = torch.randn(3, 3, side, side, dtype=torch.float64)
    target = torch.rand(3, 10, dtype=torch.float64).softmax(-1)
    model.train()
    logits = book_logits(model, image)[1]
    loss = -(target * logits.log_softmax(-1)).sum(-1).mean()
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
    tensors |= {"in.image": image, "in.target": target, "out.logits": logits, "out.loss": loss[None]}
    tensors |= {"out.grad_norm": norm[None], **{f"grad.sd.{name}": g for name, g in grads.items()}}
    return "litv2_train", dict(TINY, num_classes=10, img_size=side, drop_path_rate=0.0, **options), tensors


def litv1_file(side: int) -> Made:
    model = LITv2(**TINY, num_classes=10, attention="msa", pos="rel", img_size=side)
    tensors, image = random_state(model), torch.randn(2, 3, side, side, dtype=torch.float64)
    features, logits = book_logits(model, image)
    tensors |= {"in.image": image, "out.features": features, "out.logits": logits}
    return "litv1", dict(TINY, num_classes=10, img_size=side), tensors


def backbone_file(task: str, sizes: list[list[int]], norms: list[int], **options: Any) -> Made:
    model = LITv2Backbone((0, 1, 2, 3), norms, **TINY, **options)
    tensors = random_state(model)
    for height, width in sizes:
        image = torch.randn(2, 3, height, width, dtype=torch.float64)
        tensors[f"in.image_{height}x{width}"] = image
        for i, (before, _) in enumerate(book_stages(model, image)):
            y = getattr(model, f"norm{i}")(before) if i in norms else before
            tensors[f"out.c{i + 2}_{height}x{width}"] = y.permute(0, 3, 1, 2)
    return f"backbone_{task}", dict(TINY, task=task, sizes=sizes, out_norms=norms, **options), tensors


FILES: dict[str, Callable[[], Made]] = {
    "hilo_smaller_than_window": lambda: hilo_file(16, 4, 7, 0.5, (2, 3)),
    "hilo_one_token": lambda: hilo_file(12, 3, 2, 0.4, (1, 1)),
    "hilo_odd_w3_a09": lambda: hilo_file(24, 12, 3, 0.9, (7, 5), qkv_bias=False),
    "hilo_w1_keeps_all_heads": lambda: hilo_file(16, 4, 1, 0.0, (3, 5)),
    "hilo_one_head": lambda: hilo_file(8, 1, 2, 0.9, (5, 2)),
    "hilo_a1_odd": lambda: hilo_file(16, 2, 4, 1.0, (5, 9)),
    "hilo_a0_scale_0": lambda: hilo_file(16, 2, 4, 0.0, (9, 3), qk_scale=0),
    "block_hilo_odd": lambda: block_file(16, (5, 3), 2, heads=4, alpha=0.7),
    "block_convffn_line": lambda: block_file(8, (1, 7), 3.5),
    "conv_ffn_one_token": lambda: ffn_file(6, 10, (1, 1)),
    "dtm_eval_odd": lambda: merging_file(6, (5, 9), 3.0, train=False),
    "dtm_eval_smallest": lambda: merging_file(4, (2, 3), 30.0, train=False),
    "dtm_train_odd": lambda: merging_file(6, (7, 4), 1.0, train=True),
    "patch_embed_one_patch": lambda: patch_file(8, (3, 1)),
    "litv2_three_sizes": lambda: classifier_file([32, 48, 80], alpha=0.5, local_ws=[0, 0, 3, 2]),
    "litv2_a0_no_bias": lambda: classifier_file([64], alpha=0.0, qkv_bias=False, mlp_ratio=2.0),
    "litv2_attention_everywhere": lambda: classifier_file([64], alpha=1.0, local_ws=[4, 2, 1, 2], has_msa=[1, 1, 1, 1]),
    "litv2_train_small": lambda: training_file(32, alpha=0.5),
    "litv1_smallest": lambda: litv1_file(32),
    "backbone_det_odd": lambda: backbone_file("det", [[33, 71], [90, 38]], [1, 2, 3], alpha=0.9, local_ws=[0, 0, 4, 1]),
    "backbone_seg_odd": lambda: backbone_file("seg", [[32, 32], [47, 101]], [0, 1, 2, 3], alpha=0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_verifies_and_notices_a_change(name: str, tmp_path: Path) -> None:
    kind, config, tensors = FILES[name]()
    tensors = {key: t.detach().contiguous() for key, t in tensors.items()}
    metadata = {"kind": kind, "config": json.dumps(config), "describes": name}
    save_file(tensors, tmp_path / "made.safetensors", metadata)
    assert verify.run([tmp_path / "made.safetensors"], KINDS) == 0
    key = [key for key in tensors if key.startswith("out.")][-1]
    moved = tensors[key].clone()
    moved.view(-1)[moved.abs().argmax()] *= 1.001
    save_file({**tensors, key: moved}, tmp_path / "moved.safetensors", metadata)
    assert verify.run([tmp_path / "moved.safetensors"], KINDS) == 1


@pytest.mark.parametrize(("name", "key", "allowed"), [
    ("litv2_train_small", "out.logits", 1e-4), ("litv2_train_small", "out.loss", 1e-4),
    ("litv2_a0_no_bias", "out.logits_64", 1e-5), ("litv1_smallest", "out.logits", 1e-5),
])  # fmt: skip
def test_tolerance(name: str, key: str, allowed: float, tmp_path: Path) -> None:
    """A batch's statistics make files of two processors differ by 3.5e-5; elsewhere the bound is narrow."""
    kind, config, tensors = FILES[name]()
    tensors = {key: t.detach().contiguous() for key, t in tensors.items()}
    metadata = {"kind": kind, "config": json.dumps(config), "describes": name}
    for share, code in ((0.8, 0), (1.2, 1)):
        moved = tensors[key].clone()
        moved.view(-1)[moved.abs().argmax()] *= 1 + share * allowed
        save_file({**tensors, key: moved}, tmp_path / "moved.safetensors", metadata)
        assert verify.run([tmp_path / "moved.safetensors"], KINDS) == code
