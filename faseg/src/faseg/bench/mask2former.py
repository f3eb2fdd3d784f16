"""Mask2Former of `transformers` under the weights of this package's baseline: the rival for whole models.

Detectron2's names, which the baseline has, on the left; those of `transformers` on the right.
"""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.errors import UserError

_PIXEL, _TRANSFORMER = "model.pixel_level_module.", "model.transformer_module."
_ENCODER, _DECODER = f"{_PIXEL}encoder.", f"{_TRANSFORMER}decoder."
_RENAMES = {
    "backbone.stem.conv1.norm.": f"{_ENCODER}embedder.embedder.normalization.",
    "backbone.stem.conv1.": f"{_ENCODER}embedder.embedder.convolution.",
    **{f"backbone.res{stage}.": f"{_ENCODER}encoder.stages.{stage - 2}.layers." for stage in range(2, 6)},
    **{f".conv{i}.norm.": f".layer.{i - 1}.normalization." for i in (1, 2, 3)},
    **{f".conv{i}.": f".layer.{i - 1}.convolution." for i in (1, 2, 3)},
    ".shortcut.norm.": ".shortcut.normalization.",
    ".shortcut.weight": ".shortcut.convolution.weight",
    "sem_seg_head.pixel_decoder.transformer.": f"{_PIXEL}decoder.",
    "sem_seg_head.pixel_decoder.": f"{_PIXEL}decoder.",
    ".input_proj.": ".input_projections.",
    ".mask_features.": ".mask_projection.",
    "_1.norm.": "_1.1.",
    "_1.weight": "_1.0.weight",
    ".norm1.": ".self_attn_layer_norm.",
    ".norm2.": ".final_layer_norm.",
    ".linear1.": ".fc1.",
    ".linear2.": ".fc2.",
    "sem_seg_head.predictor.class_embed.": "class_predictor.",
    "sem_seg_head.predictor.query_feat.": f"{_TRANSFORMER}queries_features.",
    "sem_seg_head.predictor.query_embed.": f"{_TRANSFORMER}queries_embedder.",
    "sem_seg_head.predictor.level_embed.": f"{_TRANSFORMER}level_embed.",
    "sem_seg_head.predictor.decoder_norm.": f"{_DECODER}layernorm.",
    **{
        f"sem_seg_head.predictor.mask_embed.layers.{i}.": f"{_DECODER}mask_predictor.mask_embedder.{i}.0."
        for i in range(3)
    },
    "sem_seg_head.predictor.transformer_": f"{_DECODER}transformer_",
    "transformer_cross_attention_layers.": "layers.",
    "transformer_self_attention_layers.": "layers.",
    "transformer_ffn_layers.": "layers.",
    ".multihead_attn.": ".cross_attn.",
}
"""Read in this order: what a longer name needs stands before the shorter one that is part of it."""
_NORMS = {
    "cross_attention": "cross_attn_layer_norm",
    "self_attention": "self_attn_layer_norm",
    "ffn": "final_layer_norm",
}


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Mask2Former of detectron2's names (ResNet backbone) under the names of `transformers`."""
    result: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        new = name
        for block, norm in _NORMS.items():
            if f"transformer_{block}_layers" in name:
                new = new.replace(".norm.", f".{norm}.")
        for old, their in _RENAMES.items():
            new = new.replace(old, their)
        if "self_attn.in_proj_" in new:  # one matrix for all three there, one for each here
            head, kind = new.split("in_proj_")
            result |= {f"{head}{part}_proj.{kind}": t for part, t in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            result[new] = tensor
    return result


def mask2former(classes: int, weights: Mapping[str, Tensor], depths: Sequence[int] = (3, 4, 6, 3)) -> nn.Module:
    """`transformers`' Mask2Former with its own ResNet of bottlenecks, in eval mode, with those weights.

    Sizes that this package's baseline has too: nine layers, three levels, 100 queries.

    Raises:
        UserError: `transformers` is not installed.
        RuntimeError: a weight has no place in it, or one of its own is left unset.
    """
    try:
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig, logging
    except ImportError as error:
        raise UserError(
            "transformers is not installed, the rival for whole models: pip install 'faseg[bench]'"
        ) from error

    logging.set_verbosity_error()  # it warns of every backbone that is not Swin
    stages = [f"stage{number}" for number in range(1, 5)]
    backbone: dict[str, Any] = {"depths": list(depths), "out_features": stages}
    options: dict[str, Any] = {"backbone_config": ResNetConfig(**backbone), "num_labels": classes}
    with torch.device("meta"):
        model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**options))
    model.to_empty(device="cpu")
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name.endswith("num_batches_tracked")}
    given = renamed(weights)
    given.pop("criterion.empty_weight", None)
    model.load_state_dict({**given, **buffers, "criterion.empty_weight": torch.ones(classes + 1)})
    return model.eval()


class _OurBackbone(nn.Module):
    """This package's backbone behind the interface of one of `transformers`."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> SimpleNamespace:
        return SimpleNamespace(feature_maps=self.backbone(image))


def put_backbone(model: nn.Module, backbone: nn.Module) -> None:
    """In place of the model's own backbone, so that a race of two networks is one of everything behind it."""
    model.get_submodule("model.pixel_level_module").encoder = _OurBackbone(backbone)


def their_outputs(model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Class and mask logits of the last layer of a `mask2former`."""
    found = model(image)
    return found.class_queries_logits, found.masks_queries_logits
