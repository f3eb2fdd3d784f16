"""The binary networks in timm's registry: `timm.create_model("deit_small_patch16_224_bivit_w1a1", num_classes=10)`.

Each name is that of timm's float network, the method, and for MLPs with binary activations `_w1a1`. `pretrained=True`
begins with timm's weights of the float network: a start for training, not a trained binary one, of which none were
released. Arguments go to timm's constructor; `features_only=True` works as it does there.
"""

import sys
from dataclasses import replace
from typing import Any

import timm
from timm.models import generate_default_cfgs, register_model
from torch import nn

from bivit.models.names import ARCHITECTURES, VARIANTS
from paperkit.errors import UserError, one_line

CONSUMED = ("pretrained_cfg", "pretrained_cfg_overlay")


def create(arch: str, variant: str, pretrained: bool, **options: Any) -> nn.Module:
    """timm's network, binarized after its weights are read, if they are asked for.

    Raises:
        UserError: `pretrained` without a network or a cache to read them from.
    """
    from bivit.models.binarize import METHODS, binarize

    described = {key: options.pop(key, None) for key in CONSUMED}
    overlay = described["pretrained_cfg_overlay"]
    try:
        model = timm.create_model(arch, pretrained=pretrained, pretrained_cfg_overlay=overlay, **options)
    except OSError as error:  # the hub's client without a network raises kinds of it
        reason = one_line(str(error))[:200]
        raise UserError(
            f"timm gave no weights of {arch}: {reason}; load a file with bivit.load_pretrained(model, PATH)"
        ) from error
    method, mlp = VARIANTS[variant]
    config: Any = replace(METHODS[method], mlp=mlp)  # type: ignore[arg-type]
    binarize(model, config)
    return model


def _register(arch: str, variant: str) -> None:
    name = f"{arch}_{variant}"

    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        return create(arch, variant, pretrained, **options)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"{arch} by {variant}; arguments of the network go through."
    entry.__module__ = __name__
    setattr(sys.modules[__name__], name, register_model(entry))


def _cfg() -> dict[str, Any]:
    return dict(
        url="", num_classes=1000, input_size=(3, 224, 224), pool_size=None, crop_pct=0.875, interpolation="bicubic",
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), license="apache-2.0",
    )  # fmt: skip


default_cfgs = generate_default_cfgs({f"{arch}_{variant}": _cfg() for arch in ARCHITECTURES for variant in VARIANTS})
for _arch in ARCHITECTURES:
    for _variant in VARIANTS:
        _register(_arch, _variant)
