"""What is raced: supernets with other forms of attention under the same weights, and attentions alone.

Shapes: B images, h heads, N tokens, C head width.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from focusformer.method.architecture import SPACES, Architecture, SuperSizes
from focusformer.method.attention import ElasticAttention
from focusformer.method.elastic import ElasticQkv
from focusformer.method.relative_position import RelativePosition2d, official_attention, separable_attention
from focusformer.method.supernet import Supernet

OURS, OFFICIAL, NONE = "separable", "official form", "no relative position"
"""The default; tables materialised and qkv gathered by strides; and what no form of it can beat."""
FORMS = (OURS, OFFICIAL, NONE)


class GatheredQkv(ElasticQkv):
    """The released code's slice of an interleaved weight: three strided copies, and one more that joins them."""

    def sliced(self, inputs: int, outputs: int) -> tuple[Tensor, Tensor | None]:
        """As `ElasticQkv.sliced`, for the contiguous layout of the bias."""
        rows = [self.weight[i:outputs:3, :inputs] for i in range(3)]
        return torch.cat(rows), None if self.bias is None else self.bias[:outputs]


def supernet_of(form: str, sizes: SuperSizes) -> Supernet:
    """A supernet with that form of relative position; those with one have the same weights."""
    torch.manual_seed(0)
    if form == NONE:
        return Supernet(replace(sizes, relative_position=False))
    net = Supernet(sizes, relative="separable" if form == OURS else "official")
    if form == OFFICIAL:
        for attention in (module for module in net.modules() if isinstance(module, ElasticAttention)):
            old = attention.qkv
            attention.qkv = GatheredQkv(old.in_features, old.out_features)
            attention.qkv.load_state_dict(old.state_dict())
    return net


def training_step(net: Supernet, architecture: Architecture, images: Tensor) -> Callable[[], Tensor]:
    """Forward and backward without an optimiser; gives the loss."""
    labels = torch.arange(len(images)) % net.sizes.num_classes

    def step() -> Tensor:
        net.zero_grad(set_to_none=True)
        loss = F.cross_entropy(net(images, architecture), labels)
        loss.backward()
        return loss.detach()

    return step


def images_of(sizes: SuperSizes, count: int, seed: int = 0) -> Tensor:
    """Made images."""
    size = (count, sizes.in_chans, sizes.img_size, sizes.img_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def attention_steps(tokens: int, heads: int, batch: int, backward: bool) -> dict[str, Callable[[], Tensor]]:
    """Each form of attention alone, from queries, keys and values to the output and, if asked for, back."""
    width, clip = 64, SPACES["ti"].sizes.max_relative_position
    generator = torch.Generator().manual_seed(0)
    q, k, v, cotangent = (torch.randn(batch, heads, tokens, width, generator=generator) for _ in range(4))
    torch.manual_seed(0)
    keys, values = RelativePosition2d(width, clip), RelativePosition2d(width, clip)
    leaves = [q, k, v]
    for leaf in leaves:
        leaf.requires_grad_(backward)
    leaves += [*keys.parameters(), *values.parameters()]
    scale = 1 / math.sqrt(width)
    forms: dict[str, Callable[[], Tensor]] = {
        OURS: partial(separable_attention, q, k, v, keys, values, scale),
        OFFICIAL: partial(official_attention, q, k, v, keys, values, scale),
        NONE: partial(F.scaled_dot_product_attention, q, k, v, scale=scale),
    }

    def step(form: Callable[[], Tensor]) -> Tensor:
        if not backward:
            with torch.no_grad():
                return form()
        for leaf in leaves:
            leaf.grad = None
        out = form()
        out.backward(cotangent)
        return out.detach()

    return {name: partial(step, form) for name, form in forms.items()}
