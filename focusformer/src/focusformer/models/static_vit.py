"""One sub-network as a plain model of its own: no slicing, only its own weights, timm's contract and the hub's folders.

Its function is that of the supernet at the same architecture (`focusformer.models.extraction` copies the weights).
Names of weights are timm's (blocks.0.attn.qkv, blocks.0.mlp.fc1, ...); rows of qkv are all queries, keys, values.

Shapes: B images, C channels of them, N = 1 + s^2 tokens, e width, h heads of width d, q = h d, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from focusformer.method.architecture import Architecture
from focusformer.method.relative_position import RelativePosition2d, separable_attention
from paperkit.doors.classifier_head import replace_head
from paperkit.doors.stage_indices import stage_indices
from paperkit.errors import UserError
from paperkit.files.hub import SavedInFolder

CARD = """---
{{ card_data }}
---

# FocusFormer sub-network

A vision transformer cut out of a weight-sharing supernet (arXiv 2208.10861, 2107.00651), an image classifier.

Load it with `focusformer.StaticViT.from_pretrained(FOLDER)`; `config.json` names its architecture. What it was trained
on, how well it does and where it fails are facts of the training run that wrote these weights: they stand in that
run's `metrics.json`, not here.
"""


class Attention(nn.Module):
    """Heads of one width, with relative position on keys and values."""

    def __init__(self, embed: int, heads: int, head_dim: int, clip: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(embed, 3 * heads * head_dim, bias=qkv_bias)
        self.proj = nn.Linear(heads * head_dim, embed)
        self.rel_pos_embed_k = RelativePosition2d(head_dim, clip) if clip else None
        self.rel_pos_embed_v = RelativePosition2d(head_dim, clip) if clip else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, e) -> (B, N, e)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.rel_pos_embed_k is None or self.rel_pos_embed_v is None:
            x = scaled_dot_product_attention(q, k, v)
        else:
            x = separable_attention(q, k, v, self.rel_pos_embed_k, self.rel_pos_embed_v, q.shape[-1] ** -0.5)
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linears around the exact GELU, which is taken in float32."""

    def __init__(self, embed: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(embed, hidden), nn.Linear(hidden, embed)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, e) -> (B, N, e)."""
        x = self.fc1(x)
        return self.fc2(gelu(x.float()).to(x.dtype))


class Block(nn.Module):
    """Attention and MLP, each on normalised input; without `pre_norm` the sums are normalised instead."""

    def __init__(self, attention: Attention, mlp: Mlp, embed: int, drop_path: float, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.norm1, self.norm2 = nn.LayerNorm(embed), nn.LayerNorm(embed)
        self.attn, self.mlp = attention, mlp
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, e) -> (B, N, e)."""
        if self.pre_norm:
            x = x + self.drop_path(self.attn(self.norm1(x)))
            return x + self.drop_path(self.mlp(self.norm2(x)))
        x = self.norm1(x + self.drop_path(self.attn(x)))
        return self.norm2(x + self.drop_path(self.mlp(x)))


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel; tokens row by row."""

    def __init__(self, in_chans: int, embed: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, s^2, e)."""
        return self.proj(images).flatten(2).mT


class StaticViT(
    nn.Module,
    SavedInFolder,
    library_name="focusformer",
    license="apache-2.0",
    tags=["focusformer", "image-classification"],
    model_card_template=CARD,
):
    """A sub-network, and timm's contract for it.

    Args:
        architecture: its one-line text, `192/3,3,4/3.5,4,4`: width, heads and MLP ratios of each layer.
        img_size, patch_size, in_chans, num_classes: of the images; num_classes 0 leaves the classifier out.
        head_dim: d, or one for each layer.
        max_relative_position: M; 0 for a model without relative position.
        abs_pos, qkv_bias, pre_norm: as in `focusformer.method.architecture.SuperSizes`.
        global_pool: "avg" over the patch tokens, "token" the class token, "" none.
        drop_rate, drop_path_rate: dropout of the tokens, and stochastic depth of the last layer, 0 in the first.

    Raises:
        UserError: what describes no such network.
    """

    def __init__(
        self,
        architecture: str,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        head_dim: int | Sequence[int] = 64,
        max_relative_position: int = 14,
        abs_pos: bool = True,
        qkv_bias: bool = True,
        pre_norm: bool = True,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.architecture = chosen = Architecture.parse(architecture)
        _check(chosen, img_size, patch_size, in_chans, num_classes, max_relative_position, global_pool)
        widths = [head_dim] * chosen.depth if isinstance(head_dim, int) else list(head_dim)
        if len(widths) != chosen.depth or not all(isinstance(width, int) and width > 0 for width in widths):
            raise UserError(f"head_dim {head_dim}: one width above 0, or one for each of {chosen.depth} layers")
        embed, grid = chosen.embed, img_size // patch_size
        self.num_features = self.head_hidden_size = self.embed_dim = embed
        self.img_size, self.in_chans, self.grid_size = img_size, in_chans, (grid, grid)
        self.num_classes, self.global_pool, self.num_prefix_tokens = num_classes, global_pool, 1
        self.patch_embed = PatchEmbed(in_chans, embed, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid**2 + 1, embed)) if abs_pos else None
        self.pos_drop = nn.Dropout(drop_rate)
        layers = zip(chosen.heads, widths, chosen.hidden, strict=True)
        rates = torch.linspace(0, drop_path_rate, chosen.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(
                Attention(embed, heads, width, max_relative_position, qkv_bias),
                Mlp(embed, hidden), embed, rate, pre_norm,
            )
            for rate, (heads, width, hidden) in zip(rates, layers, strict=True)
        )  # fmt: skip
        self.norm = nn.LayerNorm(embed) if pre_norm else nn.Identity()
        self.head: nn.Module = nn.Linear(embed, num_classes) if num_classes else nn.Identity()
        self.feature_info = [
            dict(num_chs=embed, reduction=patch_size, module=f"blocks.{i}") for i in range(chosen.depth)
        ]
        self.grad_checkpointing = False
        self.apply(_initialise)
        for parameter in (self.cls_token, self.pos_embed):
            if parameter is not None:
                trunc_normal_(parameter, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, e), normalised; the class token is the first."""
        x = self._embedded(images)
        for block in self.blocks:
            x = self._run(block, x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, N, e) -> (B, K); with `pre_logits` the pooled features (B, e)."""
        if self.global_pool:
            x = x[:, 1:].mean(1) if self.global_pool == "avg" else x[:, 0]
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Tokens behind blocks as maps (B, e, s, s), or as (B, s^2, e) for "NLC"; timm's calling convention."""
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"output_fmt '{output_fmt}' is not NCHW or NLC")
        wanted, found = stage_indices(len(self.blocks), indices), []
        x = self._embedded(x)
        for i, block in enumerate(self.blocks):
            x = self._run(block, x)
            if i in wanted:
                tokens = self.norm(x) if norm else x
                patches = tokens[:, 1:]
                shaped = patches if output_fmt == "NLC" else patches.mT.unflatten(2, self.grid_size)
                found.append((shaped, tokens[:, :1]) if return_prefix_tokens else shaped)
            if i == max(wanted) and (stop_early or intermediates_only):
                break
        return found if intermediates_only else (self.norm(x), found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop blocks behind the last wanted one, and the classifier; returns the wanted blocks' indices."""
        wanted = stage_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: max(wanted) + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return wanted

    def get_classifier(self) -> nn.Module:
        """The classifier layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for `num_classes` classes; 0 for none."""
        replace_head(self, num_classes, global_pool, _initialise)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """As in AutoFormer's recipe, by exact names: the relative tables are decayed."""
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's layer groups for layer-wise learning rates."""
        return dict(stem=r"^cls_token|pos_embed|patch_embed", blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))])

    def _embedded(self, images: Tensor) -> Tensor:
        wanted = (self.in_chans, self.img_size, self.img_size)
        if images.shape[1:] != wanted:
            found, right = (" x ".join(map(str, shape)) for shape in (images.shape[1:], wanted))
            raise UserError(f"images are {found}; this model takes {right} (in_chans, img_size)")
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        return self.pos_drop(x if self.pos_embed is None else x + self.pos_embed)

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training and not torch.jit.is_scripting():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)


def _check(
    architecture: Architecture, img_size: int, patch_size: int, in_chans: int, num_classes: int, clip: int, pool: str
) -> None:
    least = dict(img_size=(img_size, 1), patch_size=(patch_size, 1), in_chans=(in_chans, 1))
    least |= dict(num_classes=(num_classes, 0), max_relative_position=(clip, 0))
    for name, (value, lowest) in least.items():
        if not isinstance(value, int) or value < lowest:
            raise UserError(f"{name} {value}: a whole number, {lowest} at least")
    if img_size % patch_size:
        raise UserError(f"img_size {img_size} is no multiple of patch_size {patch_size}")
    if min(architecture.hidden) < 1:
        raise UserError(f"an MLP ratio of {architecture} leaves no hidden unit")
    if pool not in ("avg", "token", ""):
        raise UserError(f"global_pool '{pool}' is none of 'avg', 'token' and ''")


def _initialise(module: nn.Module) -> None:
    """As released: linears normal of 0.02, biases 0; the convolution keeps torch's."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
