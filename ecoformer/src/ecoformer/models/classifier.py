"""What both pyramids share: stages to logits, timm's model contract, huggingface_hub's folders.

Shapes: B batch, N = h w tokens of a stage, D its width, H x W image, K classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ecoformer.method.attention import EcoFormerAttention, name_layers
from ecoformer.method.hash_fit import fit_options
from ecoformer.method.performer import PerformerAttention
from ecoformer.method.shared_qk import SharedQKAttention
from ecoformer.method.softmax_attention import MSA, SRA
from paperkit.doors.classifier_head import replace_head
from paperkit.doors.stage_indices import stage_indices
from paperkit.errors import UserError

SMALLEST_IMAGE = 32
"""px; the stride of the last stage."""
CARD = """---
{{ card_data }}
---

# EcoFormer

Vision transformer whose attention works on learned binary codes in linear time (arXiv 2209.09004), an image classifier.

Load it with `ecoformer.PVTv2.from_pretrained(FOLDER)` or `ecoformer.Twins.from_pretrained(FOLDER)`. What it was trained
on, how well it does and where it fails are facts of the training run that wrote these weights: they stand in that run's
`metrics.json`, not here.
"""
IN_FOLDER: dict[str, Any] = dict(library_name="ecoformer", license="apache-2.0", model_card_template=CARD)
KINDS = ("ecoformer", "msa", "msa_share_qk", "sra", "performer")


def build_attention(
    kind: str,
    dim: int,
    heads: int,
    sr_ratio: int = 1,
    qkv_bias: bool = True,
    drop: float = 0.0,
    binary: dict[str, Any] | None = None,
) -> nn.Module:
    """An attention layer by its released name.

    Args:
        binary: options of `EcoFormerAttention`.

    Raises:
        UserError: a kind that is not in `KINDS`.
    """
    if kind == "ecoformer":
        return EcoFormerAttention(dim, heads, qkv_bias=qkv_bias, proj_drop=drop, **(binary or {}))
    if kind == "sra":
        return SRA(dim, heads, sr_ratio, qkv_bias, drop)
    plain = {"msa": MSA, "msa_share_qk": SharedQKAttention, "performer": PerformerAttention}
    if kind not in plain:
        raise UserError(f"attention '{kind}' is none of {', '.join(KINDS)}")
    return plain[kind](dim, heads, qkv_bias, drop)


def binary_options(
    nbits: int,
    supports: int,
    bias_mode: str,
    bias: str | float,
    backend: str,
    fit: dict[str, Any] | str | None,
) -> dict[str, Any]:
    """Options of `EcoFormerAttention` from plain values, as they stand in a folder's config."""
    options = fit_options(fit)
    return dict(nbits=nbits, supports=supports, bias_mode=bias_mode, bias=bias, backend=backend, fit=options)


def check_stages(mlp_ratios: Sequence[float], **lists: Sequence[int]) -> None:
    """Refuses lists of different lengths, and what is no size: each has one value a stage.

    Raises:
        UserError: with the lengths or the list.
    """
    lengths = {name: len(values) for name, values in {**lists, "mlp_ratios": mlp_ratios}.items()}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UserError(f"each stage needs one value in every list; their lengths are {told}")
    for name, values in lists.items():
        if any(not isinstance(value, int) or value < 1 for value in values):
            raise UserError(f"{name} {list(values)}: whole numbers, 1 at least")
    if min(mlp_ratios) <= 0:
        raise UserError(f"mlp_ratios {list(mlp_ratios)}: above 0")


def init_weights(module: nn.Module) -> None:
    """As released: Linear normal of 0.02, cut at 2 deviations; Conv2d normal by fan-out; biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0, (2.0 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class PatchEmbed(nn.Module):
    """A strided convolution and LayerNorm (eps 1e-5). Keys: proj, norm.

    Overlapping as in PVTv2 (padding of half the kernel), or not, as in Twins.
    """

    def __init__(self, in_chans: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, padding=0 if kernel == stride else kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, C, H, W) -> (B, h w, D) and the grid (h, w)."""
        x = self.proj(x)
        return self.norm(x.flatten(2).mT), (x.shape[2], x.shape[3])


class PyramidClassifier(nn.Module, ABC):
    """Stages of tokens, mean over the last stage's, a linear classifier; timm's model contract.

    A subclass sets `embed_dims`, builds its stages and gives `each_stage` and `final_norm`; then it calls `finish`.
    """

    embed_dims: tuple[int, ...]
    prefix_of_stage: str
    """How the names of a stage's blocks begin, for timm's groups: a pattern with the stage's number in brackets."""

    def finish(self, in_chans: int, num_classes: int, global_pool: str, patch_size: int) -> None:
        """The classifier, and what timm wants to know."""
        if global_pool not in ("avg", ""):
            raise UserError(f"global_pool '{global_pool}' is neither 'avg' nor ''")
        if num_classes < 0:
            raise UserError(f"num_classes {num_classes}: 0 (no classifier) at least")
        self.in_chans, self.num_classes, self.global_pool = in_chans, num_classes, global_pool
        self.num_features = self.head_hidden_size = self.embed_dims[-1]
        self.head: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.feature_info = [
            dict(num_chs=dim, reduction=patch_size * 2**i, module=f"stage{i}") for i, dim in enumerate(self.embed_dims)
        ]
        self.grad_checkpointing = False
        self.apply(init_weights)
        name_layers(self)

    @abstractmethod
    def each_stage(self, image: Tensor) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """Tokens (B, N, D) and grid of each stage, one after the other."""

    def final_norm(self, x: Tensor) -> Tensor:
        """What lies between the last stage and pooling."""
        return x

    def run_block(self, block: nn.Module, x: Tensor, size: tuple[int, int]) -> Tensor:
        """One block, its activations recomputed in the backward pass if that is switched on."""
        if self.grad_checkpointing and self.training and not torch.jit.is_scripting():
            return checkpoint(block, x, size, use_reentrant=False)
        return block(x, size)

    def check_image(self, image: Tensor) -> None:
        """Refuses images below the stride of the last stage."""
        height, width = image.shape[-2:]
        if height < SMALLEST_IMAGE or width < SMALLEST_IMAGE:
            raise UserError(f"image of {height} x {width} px; the smallest is {SMALLEST_IMAGE} x {SMALLEST_IMAGE} px")

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K)."""
        return self.forward_head(self.forward_features(image))

    def forward_features(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, D) of the last stage, normalised."""
        *_, (last, _) = self.each_stage(image)
        return self.final_norm(last)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, N, D) -> (B, K); with `pre_logits` the pooled features (B, D)."""
        x = x.mean(1) if self.global_pool == "avg" else x
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
        """Outputs of stages, (B, D, h, w) each, or "NLC"; timm's calling convention."""
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"output_fmt '{output_fmt}' is not NCHW or NLC")
        wanted = stage_indices(len(self.embed_dims), indices)
        found = []
        for i, (tokens, size) in enumerate(self.each_stage(x)):
            x = tokens
            if i in wanted:
                y = self.final_norm(tokens) if norm and i == len(self.embed_dims) - 1 else tokens
                found.append(y if output_fmt == "NLC" else y.mT.unflatten(2, size))
            if i == max(wanted) and (stop_early or intermediates_only):
                break
        return found if intermediates_only else (self.final_norm(x), found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the classifier; returns the wanted outputs' indices. Stages stay: their names are those of weights."""
        wanted = stage_indices(len(self.embed_dims), indices)
        if prune_head:
            self.reset_classifier(0, "")
        return wanted

    def get_classifier(self) -> nn.Module:
        """The classifier layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for `num_classes` classes; 0 for none."""
        replace_head(self, num_classes, global_pool, init_weights)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Nothing beside biases and vectors, which timm's groups leave out by themselves."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's layer groups for layer-wise learning rates."""
        stage = self.prefix_of_stage
        fine = [(rf"^{stage}\.(\d+)", None), (r"^(?:patch_embeds?|pos_block)\.?(\d+)", (0,)), (r"^norm", (99999,))]
        return dict(stem=r"^patch_embed(?:1|s\.0)\b", blocks=rf"^{stage}" if coarse else fine)
