"""Every network in timm's registry: `timm.create_model("pvt_v2_b0_ecoformer", num_classes=10, features_only=True)`."""

import sys
from pathlib import Path
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from ecoformer.models.architectures import ARCHITECTURES, architecture
from ecoformer.models.classifier import PyramidClassifier
from ecoformer.models.pvt import PVTv2
from ecoformer.models.released import SAVED_AS, fit_released, read_released
from ecoformer.models.twins import Twins
from paperkit.errors import UserError


def _cfg(name: str) -> dict[str, Any]:
    return dict(
        url="", num_classes=1000, input_size=(3, 224, 224), pool_size=None, crop_pct=0.875, interpolation="bicubic",
        fixed_input_size=False, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), classifier="head",
        first_conv="patch_embed1.proj" if name.startswith("pvt") else "patch_embeds.0.proj", license="apache-2.0",
    )  # fmt: skip


default_cfgs = generate_default_cfgs({f"{name}.in1k": _cfg(name) for name in ARCHITECTURES})


def create(name: str, pretrained: bool, **kwargs: Any) -> PyramidClassifier:
    """Builds a network; `pretrained` reads the released file from torch hub's checkpoint folder.

    Where timm has been told of another place (`local-dir:FOLDER`, `hf-hub:NAME`), it loads by itself.

    Raises:
        UserError: `pretrained` without a file there; the line says which file and where.
    """
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    kwargs.pop("img_size", None)  # any size runs
    options = {**architecture(name), **kwargs}
    told = kwargs.get("pretrained_cfg")
    source = told.get("source") if isinstance(told, dict) else getattr(told, "source", None)
    if source in ("local-dir", "hf-hub"):
        pass
    elif overlay.get("file"):
        overlay["state_dict"] = read_released(overlay.pop("file"))
    elif pretrained and not overlay.get("state_dict"):
        file = SAVED_AS.get(name, f"{name}.pth")
        path = Path(torch.hub.get_dir()) / "checkpoints" / file
        if not path.is_file():
            raise UserError(
                f"the released weights {file} cannot be downloaded from here; put the file at {path}, or pass "
                "pretrained_cfg_overlay=dict(file=PATH)"
            )
        overlay["state_dict"] = read_released(path)
    indices = options.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        PVTv2 if name.startswith("pvt") else Twins, name, pretrained, pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=fit_released, feature_cfg=dict(out_indices=indices, feature_cls="getter"), **options,
    )  # fmt: skip


def _register(name: str) -> None:
    def entry(pretrained: bool = False, **kwargs: Any) -> PyramidClassifier:
        return create(name, pretrained, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"{name}; arguments of the network go through."
    setattr(sys.modules[__name__], name, register_model(entry))


for _name in ARCHITECTURES:
    _register(_name)
