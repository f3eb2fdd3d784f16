"""BiViT: vision transformers of one bit, on real bits (arXiv 2211.07091).

    import bivit, timm
    model = timm.create_model("deit_small_patch16_224")          # any timm ViT, DeiT, Swin, NesT or PVTv2
    print(bivit.binarize(model, bivit.METHODS["bivit"]))         # what changed, and what stays float
    packed = bivit.pack(model.eval())                            # the same logits, from one bit per weight

Names are loaded when they are first used, and timm's registry is filled when timm is there or arrives, so that the
command line answers at once.
"""

import importlib
from typing import Any

from paperkit.doors.timm_arrival import when_timm_arrives

_HOMES = {
    "BinaryConfig": "models.binarize",
    "BinaryLinear": "method.binary_linear",
    "METHODS": "models.binarize",
    "binarize": "models.binarize",
    "binary_layers": "models.binarize",
    "distribution_loss": "method.distillation",
    "from_pretrained": "models.classifier",
    "ledger": "method.ledger",
    "load_pretrained": "models.keys",
    "pack": "deployment.packed_model",
    "save_pretrained": "models.classifier",
    "set_stage": "models.binarize",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"bivit.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'bivit' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


when_timm_arrives("bivit.models.timm_models")
