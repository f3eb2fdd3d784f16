"""EcoFormer: attention in linear time over learned binary codes (arXiv 2209.09004).

    import ecoformer, timm
    model = timm.create_model("pvt_v2_b0")                      # any timm ViT, PVTv2 or Twins
    print(ecoformer.convert(model))                             # which layers changed, what they kept
    ecoformer.fit_hashes(model, images)                         # or train: the first batch fits them
    ecoformer.ledger(model).total.energy_pj()

Importing the package registers its networks in timm (`timm.list_models("*ecoformer*")`). Names are loaded when they are
first used, and timm's registry is filled when timm is there or arrives, so that the command line answers at once.
"""

import importlib
from typing import Any

from paperkit.doors.timm_arrival import when_timm_arrives

_HOMES = {
    "EcoFormerAttention": "method.attention",
    "FitOptions": "method.hash_fit",
    "KernelHash": "method.kernel_hash",
    "PVTv2": "models.pvt",
    "PerformerAttention": "method.performer",
    "SharedQKAttention": "method.shared_qk",
    "Twins": "models.twins",
    "architecture": "models.architectures",
    "build": "models.architectures",
    "convert": "models.swap",
    "fit_hash": "method.hash_fit",
    "fit_hashes": "method.attention",
    "ledger": "method.energy",
    "linear_attention": "method.linear_attention",
    "load_released": "models.released",
    "normalise": "method.kernel_hash",
    "start_epoch": "method.attention",
    "start_from": "models.conversion",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"ecoformer.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'ecoformer' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


when_timm_arrives("ecoformer.models.timm_models")
