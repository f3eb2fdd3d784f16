"""The networks of the bench: LITv2-S with offsets that move, and what else a user can install."""

from typing import Any

import torch
from torch import nn

from litv2.models.classifier import LITv2
from litv2.models.pyramid import architecture

RIVALS = {
    "ConvNeXt-T": "convnext_tiny",
    "CAFormer-S18": "caformer_s18",
    "Swin-Ti": "swin_tiny_patch4_window7_224",
    "PVTv2-b2": "pvt_v2_b2",
    "DeiT-S": "deit_small_patch16_224",
    "ResNet-50": "resnet50",
}
FIXED_SIZE = ("Swin-Ti", "DeiT-S")


def litv2_s() -> LITv2:
    """LITv2-S with random weights, its offsets not at their starting zero."""
    torch.manual_seed(0)
    model = LITv2(**architecture("litv2_s")).eval()
    for name, p in model.named_parameters():
        if "conv_offset" in name:
            nn.init.normal_(p, std=0.05)
    return model


def rival(name: str, size: int) -> nn.Module:
    """A timm network by its name in RIVALS."""
    import timm

    options: dict[str, Any] = dict(img_size=size) if name in FIXED_SIZE else {}
    return timm.create_model(RIVALS[name], **options).eval()
