"""LITv2 as a classifier, with timm's model contract and huggingface_hub's save and load.

Shapes: B batch, D embed_dim, C = 8 D channels of the last stage, h x w tokens of the last stage, K classes.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from litv2.method.costs import official_macs
from litv2.models.pyramid import Pyramid, init_weights
from paperkit.doors.classifier_head import replace_head
from paperkit.doors.stage_indices import stage_indices
from paperkit.errors import UserError
from paperkit.files.hub import SavedInFolder

CARD = """---
{{ card_data }}
---

# LITv2

Fast pyramid vision transformer with HiLo attention (arXiv 2205.13213), an image classifier or the backbone of a
detector or segmentation network; any image size from 32 px on.

Load it with `litv2.LITv2.from_pretrained(FOLDER)`, a backbone with `litv2.LITv2Backbone.from_pretrained(FOLDER)`.
What it was trained on, how well it does and where it fails are facts of the training run that wrote these weights: they
stand in that run's `metrics.json`, not here.
"""
IN_FOLDER: dict[str, Any] = dict(library_name="litv2", license="apache-2.0", model_card_template=CARD)


class LITv2(Pyramid, SavedInFolder, **IN_FOLDER):
    """Pyramid, LayerNorm, mean over tokens, linear classifier. State-dict keys are the released files'.

    Args:
        num_classes: K; 0 leaves the classifier out.
        global_pool: "avg", or "" for the unpooled map.
        pyramid: everything else goes to `litv2.models.pyramid.Pyramid`.

    Example::

        model = LITv2(**architecture("litv2_s"))
        logits = model(images)                      # (B, 3, H, W) -> (B, 1000), any H and W from 32 px on
    """

    weights_metadata = {"format": "pt"}  # noqa: RUF012

    def __init__(self, num_classes: int = 1000, global_pool: str = "avg", **pyramid: Any) -> None:
        super().__init__(**pyramid)
        self.num_classes, self.global_pool = num_classes, global_pool
        self.norm = nn.LayerNorm(self.num_features)
        self.head: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.apply(init_weights)
        self.head_hidden_size = self.num_features
        width = self.num_features // 2 ** (self.num_stages - 1)
        self.feature_info = [
            dict(num_chs=width * 2**i, reduction=self.patch_embed.patch_size * 2**i, module=f"layers.{i}")
            for i in range(self.num_stages)
        ]
        self.output_fmt = "NHWC"

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K)."""
        return self.forward_head(self.forward_features(image))

    def forward_features(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, h, w, C), normalised."""
        *_, last = self.stages(image)
        return self.norm(last)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, h, w, C) -> (B, K); with `pre_logits` the pooled features (B, C)."""
        if self.global_pool == "avg":
            x = x.mean(dim=(1, 2))
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Stage outputs before their merging, each (B, C_i, H_i, W_i), or "NHWC"; timm's calling convention."""
        if output_fmt not in ("NCHW", "NHWC"):
            raise UserError(f"output_fmt '{output_fmt}' is not NCHW or NHWC")
        wanted = stage_indices(len(self.layers), indices)
        last = max(wanted)
        intermediates = []
        for i, y in enumerate(self.stages(x)):
            x = y
            if i in wanted:
                y = self.norm(y) if norm and i == self.num_stages - 1 else y
                intermediates.append(y if output_fmt == "NHWC" else y.permute(0, 3, 1, 2))
            if i == last and (stop_early or intermediates_only):
                break
        return intermediates if intermediates_only else (self.norm(x), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the wanted stage outputs do not need; returns their indices."""
        wanted = stage_indices(len(self.layers), indices)
        last = max(wanted)
        self.layers = self.layers[: last + 1]
        self.each_stage()[-1].downsample = None
        if prune_norm or last < self.num_stages - 1:
            self.norm = nn.Identity()  # type: ignore[assignment]
        if prune_head:
            self.reset_classifier(0, "")
        return wanted

    def get_classifier(self) -> nn.Module:
        """The classifier layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for `num_classes` classes; 0 for none."""
        replace_head(self, num_classes, global_pool, init_weights)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's layer groups for layer-wise learning rates."""
        fine = [(r"^layers\.(\d+).downsample", (0,)), (r"^layers\.(\d+)\.\w+\.(\d+)", None), (r"^norm", (99999,))]
        return dict(stem=r"^patch_embed", blocks=r"^layers\.(\d+)" if coarse else fine)

    def macs(self, img_size: int | Sequence[int] = 224, official: bool = False) -> int:
        """Multiply-adds of one image.

        Args:
            official: the authors' own count of a square image (its quirks: `litv2.method.costs`) instead of what really
                runs.
        """
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if not official:
            from paperkit.results.flops import count

            return count(self, (1, self.in_chans, *size)).macs
        blocks = [stage.each_block()[0] for stage in self.each_stage()]
        attention = [getattr(block, "attn", None) for block in blocks]
        first = blocks[0].mlp.fc1
        return official_macs(
            size[0],
            first.in_features,
            self.depths,
            [1 if a is None else a.num_heads for a in attention],
            local_ws=[getattr(a, "window_size", 0) for a in attention],
            lofi_heads=[getattr(a, "l_heads", 0) for a in attention],
            has_msa=[int(a is not None) for a in attention],
            num_classes=self.num_classes,
            mlp_ratio=first.out_features / first.in_features,
            patch_size=self.patch_embed.patch_size,
            in_chans=self.in_chans,
            litv1=any(a is not None and not hasattr(a, "l_heads") for a in attention),
        )
