"""The network for inference: same outputs, fewer and larger operations (`fuse`).

* BatchNorm of every merging folded into the deformable convolution before it: both are affine.
* In HiLo one matrix product for all that reads the map: l_q beside h_qkv; with window 1 l_q beside l_kv.

The rest of the speed is in the network itself, in training too: maps stay channels-last, the merging gathers rows,
Lo-Fi runs through fused attention. What remains of training is left out: drop paths, dropout, checkpointing.
"""

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litv2.method.deformable_merging import DeformableMerging, DeformConv
from litv2.method.hilo import HiLo
from litv2.models.pyramid import Pyramid

Network = TypeVar("Network", bound=Pyramid)


class FusedHiLo(HiLo):
    """HiLo with its input maps stacked. Takes over the parameters of `layer`; not for training."""

    def __init__(self, layer: HiLo) -> None:
        nn.Module.__init__(self)
        for name in ("dim", "num_heads", "head_dim", "window_size", "scale", "mask_padding", "fused_attn"):
            setattr(self, name, getattr(layer, name))
        self.l_heads, self.h_heads, self.l_dim, self.h_dim = layer.l_heads, layer.h_heads, layer.l_dim, layer.h_dim
        self.pools = layer.window_size > 1
        readers = [layer.l_q] if layer.l_heads else []
        readers += [layer.h_qkv] if layer.h_heads else []
        if layer.l_heads and self.pools:
            self.l_kv = layer.l_kv
        elif layer.l_heads:
            readers += [layer.l_kv]
        self.reader = stack(readers)
        if layer.l_heads:
            self.l_proj = layer.l_proj
        if layer.h_heads:
            self.h_proj = layer.h_proj

    def branches(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """As `HiLo.branches`; window 1 reads queries, keys and values at once."""
        if self.pools:
            return super().branches(x)
        q, kv = self.reader(x).split((self.l_dim, 2 * self.l_dim), dim=-1)
        return None, self.l_proj(self.lofi(q, kv.flatten(1, 2)))

    def read(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """As `HiLo.read`, in one product; the two parts are strided views of it."""
        q, qkv = self.reader(x).split((self.l_dim, 3 * self.h_dim), dim=-1)
        return q if self.l_heads else None, qkv if self.h_heads else None


def stack(layers: list[nn.Linear]) -> nn.Linear:
    """One linear layer whose output is those of `layers` side by side."""
    with torch.device("meta"):
        joined = nn.Linear(
            layers[0].in_features, sum(layer.out_features for layer in layers), layers[0].bias is not None
        )
    joined.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    if biases:
        joined.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return joined


def fold_norm(merging: DeformableMerging) -> DeformableMerging:
    """The merging with its BatchNorm's eval-mode map inside the convolution, in place.

    y = (w x + b - mean) g + shift with g = weight / sqrt(var + eps), so w' = g w and b' = g (b - mean) + shift.
    """
    norm, conv = merging.norm_layer, merging.dconv
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(conv, DeformConv)
    assert norm.running_mean is not None and norm.running_var is not None and conv.bias is not None
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    weight = conv.weight.detach() * gain[:, None, None, None].detach()
    # channels-last memory: the product's (2C, 4C) matrix is then a view instead of a copy at every call
    conv.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
    with torch.no_grad():
        conv.bias.copy_((conv.bias - norm.running_mean) * gain + norm.bias)
    merging.norm_layer = nn.Identity()
    return merging


def fuse(model: Network) -> Network:
    """A copy of a network, in eval mode without gradients, with everything of this file applied.

    The copy's state dict has other keys: save the original.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for stage in model.each_stage():
        stage.grad_checkpointing = False
        if stage.downsample is not None:
            fold_norm(stage.downsample)
        for block in stage.each_block():
            block.drop_path = nn.Identity()
            attention = getattr(block, "attn", None)
            if isinstance(attention, HiLo):
                block.attn = FusedHiLo(attention)
    return model


def outputs_differ(model: Pyramid, fused: Pyramid, image: Tensor) -> float:
    """Largest absolute difference of two networks' outputs on an image, relative to the largest output."""
    with torch.no_grad():
        pairs = [(y,) if isinstance(y, Tensor) else y for y in (model(image), fused(image))]
        return max(
            (F.l1_loss(a, b, reduction="none").max() / a.abs().max()).item() for a, b in zip(*pairs, strict=True)
        )
