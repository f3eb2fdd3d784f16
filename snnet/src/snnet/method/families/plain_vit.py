"""Plain vision transformers (DeiT and any timm `VisionTransformer`): one stage of blocks on (B, N, C) tokens."""

from typing import cast

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from snnet.method.families.family import Grid, TokenLayout


class PlainViT:
    """timm's `VisionTransformer`: class token or pooled, any depth, width and patch size."""

    name: str = "plain ViT"
    layout: TokenLayout = "tokens"
    stitched_stages: tuple[int, ...] | None = None

    def takes(self, anchor: nn.Module) -> bool:
        return type(anchor) is VisionTransformer

    def depths(self, anchor: nn.Module) -> tuple[int, ...]:
        return (len(_vit(anchor).blocks),)

    def width(self, anchor: nn.Module, stage: int) -> int:
        return _vit(anchor).embed_dim

    def grid(self, anchor: nn.Module) -> Grid:
        vit = _vit(anchor)
        image = None if vit.dynamic_img_size else vit.patch_embed.img_size
        return Grid(vit.patch_embed.patch_size[:1], image, vit.num_prefix_tokens)

    def embed(self, anchor: nn.Module, x: Tensor) -> Tensor:
        vit = _vit(anchor)
        return vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(x))))

    def enter_stage(self, anchor: nn.Module, stage: int, x: Tensor) -> Tensor:
        raise ValueError("a plain ViT has one stage")

    def block(self, anchor: nn.Module, stage: int, index: int, x: Tensor) -> Tensor:
        return _vit(anchor).blocks[index](x)

    def head(self, anchor: nn.Module, x: Tensor, final_norm: bool) -> Tensor:
        """The released code skips `norm` in stitched paths (and there alone); the equation of the paper keeps it."""
        vit = _vit(anchor)
        return vit.forward_head(vit.norm(x) if final_norm else x)

    def owned_by(self, anchor: nn.Module, step: str, stage: int, index: int, final_norm: bool) -> tuple[str, ...]:
        if step == "embed":
            return ("cls_token", "reg_token", "pos_embed", "patch_embed.", "norm_pre.")
        if step == "block":
            return (f"blocks.{index}.",)
        return ("norm.", "fc_norm.", "attn_pool.", "head.") if final_norm else ("fc_norm.", "attn_pool.", "head.")


def _vit(anchor: nn.Module) -> VisionTransformer:
    return cast(VisionTransformer, anchor)
