"""The published sizes in timm's registry: `timm.create_model("litv2_s", features_only=True, img_size=512)`."""

from pathlib import Path
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from litv2.models.classifier import LITv2
from litv2.models.pyramid import architecture
from litv2.models.released import fit_released, read_released
from paperkit.errors import UserError


def _cfg(size: int = 224, crop: float = 0.875) -> dict[str, Any]:
    return dict(
        url="", num_classes=1000, input_size=(3, size, size), pool_size=None, crop_pct=crop, interpolation="bicubic",
        fixed_input_size=False, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), first_conv="patch_embed.proj",
        classifier="head", license="apache-2.0",
    )  # fmt: skip


default_cfgs = generate_default_cfgs(
    {
        "litv2_s.in1k": _cfg(),
        "litv2_m.in1k": _cfg(),
        "litv2_b.in1k": _cfg(),
        "litv2_b_384.in1k": _cfg(384, 1.0),  # evaluation resizes straight to 384, no crop
        "litv1_s.in1k": _cfg(),
        "litv1_m.in1k": _cfg(),
        "litv1_b.in1k": _cfg(),
    }
)


def _create(name: str, pretrained: bool, **kwargs: Any) -> LITv2:
    """Build a size; `pretrained` reads the released file from torch hub's checkpoint folder.

    Where timm has been told of another place (`local-dir:FOLDER`, `hf-hub:NAME`), it loads by itself.

    Raises:
        UserError: `pretrained` without a file there; the line says which file and where.
    """
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    options = {**architecture(name), **kwargs}
    if name == "litv2_b_384" and "img_size" not in kwargs:
        options["img_size"] = 384
    told = kwargs.get("pretrained_cfg")
    source = told.get("source") if isinstance(told, dict) else getattr(told, "source", None)
    if source in ("local-dir", "hf-hub"):
        pass
    elif pretrained and not (overlay.get("file") or overlay.get("state_dict")):
        path = Path(torch.hub.get_dir()) / "checkpoints" / f"{name}.pth"
        if not path.is_file():
            raise UserError(
                f"the released weights {name}.pth cannot be downloaded from here; put the file at {path}, or pass "
                "pretrained_cfg_overlay=dict(file=PATH)"
            )
        overlay["state_dict"] = read_released(path)
    elif overlay.get("file"):
        overlay["state_dict"] = read_released(overlay.pop("file"))
    indices = options.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        LITv2, name, pretrained, pretrained_cfg_overlay=overlay, pretrained_filter_fn=fit_released,
        feature_cfg=dict(out_indices=indices, feature_cls="getter"), **options,
    )  # fmt: skip


@register_model
def litv2_s(pretrained: bool = False, **kwargs: Any) -> LITv2:
    """LITv2-S: 28 M parameters, 3.7 G multiply-adds at 224 px (paper: 82.0 % top-1)."""
    return _create("litv2_s", pretrained, **kwargs)


@register_model
def litv2_m(pretrained: bool = False, **kwargs: Any) -> LITv2:
    """LITv2-M: 49 M parameters, 7.5 G (83.3 %)."""
    return _create("litv2_m", pretrained, **kwargs)


@register_model
def litv2_b(pretrained: bool = False, **kwargs: Any) -> LITv2:
    """LITv2-B: 87 M parameters, 13.2 G (83.6 %)."""
    return _create("litv2_b", pretrained, **kwargs)


@register_model
def litv2_b_384(pretrained: bool = False, **kwargs: Any) -> LITv2:
    """LITv2-B fine-tuned at 384 px: 39.7 G (84.7 %)."""
    return _create("litv2_b_384", pretrained, **kwargs)


@register_model
def litv1_s(pretrained: bool = False, **kwargs: Any) -> LITv2:
    """LITv1-S: 27 M parameters, 4.1 G (81.5 %); bound to its `img_size`."""
    return _create("litv1_s", pretrained, **kwargs)


@register_model
def litv1_m(pretrained: bool = False, **kwargs: Any) -> LITv2:
    """LITv1-M: 48 M parameters, 8.6 G (83.0 %)."""
    return _create("litv1_m", pretrained, **kwargs)


@register_model
def litv1_b(pretrained: bool = False, **kwargs: Any) -> LITv2:
    """LITv1-B: 86 M parameters, 15.0 G (83.4 %)."""
    return _create("litv1_b", pretrained, **kwargs)
