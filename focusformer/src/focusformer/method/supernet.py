"""The weight-entangled supernet of AutoFormer: every sub-network is a slice of one set of weights.

Shapes: B images, N = P + 1 tokens with the class token, D stored width, e used width, C classes.
"""

import torch
import torch.nn.functional as F
from timm.layers import drop_path
from torch import Tensor, nn

from focusformer.method.architecture import Architecture, SuperSizes
from focusformer.method.attention import ElasticAttention, Relative
from focusformer.method.elastic import ElasticLayerNorm, ElasticLinear, ElasticPatchEmbedding
from paperkit.errors import UserError


class Block(nn.Module):
    """x + Attention(LN(x)), then x + fc2(GELU(fc1(LN(x)))).

    Args:
        sizes: of the supernet. relative: form of relative position.
    """

    def __init__(self, sizes: SuperSizes, relative: Relative = "separable") -> None:
        super().__init__()
        self.ratio, self.scale, self.pre_norm = sizes.ratio, sizes.scale, sizes.pre_norm
        hidden = int(sizes.embed * sizes.ratio)
        self.attn = ElasticAttention(
            sizes.embed,
            sizes.head_dim,
            sizes.table_width,
            sizes.max_relative_position if sizes.relative_position else None,
            change_qkv=sizes.change_qkv,
            qkv_bias=sizes.qkv_bias,
            layout=sizes.qkv_bias_layout,
            scale=sizes.scale,
            relative=relative,
        )
        self.attn_layer_norm = ElasticLayerNorm(sizes.embed)
        self.ffn_layer_norm = ElasticLayerNorm(sizes.embed)
        self.fc1 = ElasticLinear(sizes.embed, hidden)
        self.fc2 = ElasticLinear(hidden, sizes.embed)

    def forward(self, x: Tensor, heads: int, ratio: float, drop: float = 0.0, path: float = 0.0) -> Tensor:
        """(B, N, e) -> (B, N, e); drop and path are the rates of dropout and of stochastic depth."""
        for norm, branch in (
            (self.attn_layer_norm, lambda x: self._dropped(self.attn(x, heads), drop)),
            (self.ffn_layer_norm, lambda x: self.mlp(x, ratio, drop)),
        ):
            y = drop_path(branch(norm(x) if self.pre_norm else x), path, self.training)
            x = x + y if self.pre_norm else norm(x + y)
        return x

    def mlp(self, x: Tensor, ratio: float, drop: float = 0.0) -> Tensor:
        """fc2(GELU(fc1(x))) of hidden width int(e r), GELU in float32; times stored ratio / r with `scale`."""
        hidden = self.fc1(x, int(x.shape[-1] * ratio))
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        hidden = self._dropped(F.gelu(wide).to(hidden.dtype), drop)
        y = self._dropped(self.fc2(hidden, x.shape[-1]), drop)
        return y * (self.ratio / ratio) if self.scale else y

    def _dropped(self, x: Tensor, rate: float) -> Tensor:
        return F.dropout(x, rate, self.training) if rate else x


class Supernet(nn.Module):
    """The supernet under the keys of the official state dict; the architecture is an argument, nothing is kept of it.

    Args:
        sizes: what is stored. drop_rate: dropout of the full width, times e / D of a narrower one.
        drop_path_rate: stochastic depth of the last stored layer, rising from 0 at the first; a shallower sub-network
            keeps the rates of its layers, so that it never sees the full one.
        relative: form of relative position; both have the same results.
    """

    def __init__(
        self,
        sizes: SuperSizes,
        *,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        relative: Relative = "separable",
    ) -> None:
        super().__init__()
        self.sizes, self.drop_rate = sizes, drop_rate
        self.path_rates = [drop_path_rate * layer / max(sizes.depth - 1, 1) for layer in range(sizes.depth)]
        width = sizes.embed
        self.patch_embed_super = ElasticPatchEmbedding(sizes.patch_size, sizes.in_chans, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.patches + 1, width)) if sizes.abs_pos else None
        self.blocks = nn.ModuleList(Block(sizes, relative) for _ in range(sizes.depth))
        self.norm = ElasticLayerNorm(width) if sizes.pre_norm else None
        self.head = ElasticLinear(width, sizes.num_classes)
        self._initialise()

    def _initialise(self) -> None:
        """Truncated normal weights of std 0.02 in linears, class token and positions; the convolution keeps torch's."""
        for module in self.modules():
            if isinstance(module, ElasticLinear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for parameter in (self.cls_token, self.pos_embed):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward_tokens(self, images: Tensor, architecture: Architecture) -> Tensor:
        """(B, channels, H, W) -> (B, N, e): all tokens behind the final norm.

        Raises:
            UserError: images of another size, or an architecture above the super sizes.
        """
        sizes, embed = self.sizes, architecture.embed
        if images.shape[1:] != (sizes.in_chans, sizes.img_size, sizes.img_size):
            wanted = f"{sizes.in_chans} x {sizes.img_size} x {sizes.img_size}"
            raise UserError(f"images are {' x '.join(map(str, images.shape[1:]))}; the supernet takes {wanted}")
        sizes.check(architecture)
        x = self.patch_embed_super(images, embed)
        x = torch.cat((self.cls_token[..., :embed].expand(len(x), -1, -1).to(x.dtype), x), 1)
        if self.pos_embed is not None:
            x = x + self.pos_embed[..., :embed]
        drop = self.drop_rate * embed / sizes.embed
        if drop:
            x = F.dropout(x, drop, self.training)
        layers = zip(self.blocks, architecture.heads, architecture.ratios, self.path_rates, strict=False)
        for block, heads, ratio, path in layers:
            x = block(x, heads, ratio, drop, path)
        return x if self.norm is None else self.norm(x)

    def forward_features(self, images: Tensor, architecture: Architecture) -> Tensor:
        """(B, channels, H, W) -> (B, e): mean of the patch tokens (`gp`), or the class token."""
        x = self.forward_tokens(images, architecture)
        return x[:, 1:].mean(1) if self.sizes.gp else x[:, 0]

    def forward(self, images: Tensor, architecture: Architecture) -> Tensor:
        """(B, channels, H, W) -> (B, C)."""
        return self.head(self.forward_features(images, architecture))
