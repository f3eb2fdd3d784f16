"""Models of a few thousand weights that every test can afford."""

import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from spt.method.sensitivity import measure_sensitivities, reset_head

CLASSES = 6


def tiny_vit(seed: int = 0, classes: int = CLASSES, depth: int = 3, **options: object) -> VisionTransformer:
    """A ViT of 16 tokens and width 32 with a random head."""
    torch.manual_seed(seed)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": depth, "num_heads": 4, **options}
    model = VisionTransformer(num_classes=classes, **sizes)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.1)
    reset_head(model)
    return model


def tiny_swin(seed: int = 0) -> SwinTransformer:
    """A Swin of two stages, window 2, with shifted windows and one patch merging."""
    torch.manual_seed(seed)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=2,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
        num_classes=CLASSES,
    )
    reset_head(model)
    return model


def batches(count: int = 3, size: int = 6, side: int = 16, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 3, side, side, generator=generator), torch.randint(0, CLASSES, (size,), generator=generator))
        for _ in range(count)
    ]


def tiny_values(seed: int = 0) -> dict[str, Tensor]:
    """Sensitivities of the tiny ViT."""
    return measure_sensitivities(tiny_vit(seed), batches(seed=seed), eval_mode=True).values
