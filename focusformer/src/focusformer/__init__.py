"""FocusFormer: one sampler call instead of a search (arXiv 2208.10861).

    import focusformer
    space = focusformer.SPACES["ti"]                             # or SearchSpace.from_yaml("my_space.yaml")
    supernet = focusformer.Supernet(space.sizes)                 # AutoFormer's keys: its checkpoints load
    logits = supernet(images, space.smallest())                  # the architecture is an argument, no state
    model = focusformer.extract_subnet(supernet, space.smallest())  # a plain model of its own, equal logits

Importing the package registers its networks in timm (`focusformer_subnet`, `autoformer_tiny`, ...). Names are loaded
when they are first used, so that the command line answers at once.
"""

import importlib
from typing import Any

from paperkit.doors.timm_arrival import when_timm_arrives

_HOMES = {
    "Architecture": "method.architecture",
    "SPACES": "method.architecture",
    "SavedSampler": "models.saved_sampler",
    "SavedSupernet": "models.folders",
    "LatencyTable": "method.cost",
    "SearchSpace": "method.architecture",
    "SuperSizes": "method.architecture",
    "StaticViT": "models.static_vit",
    "Supernet": "method.supernet",
    "cost": "method.cost",
    "costs_of": "method.cost",
    "extract_subnet": "models.extraction",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"focusformer.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'focusformer' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


when_timm_arrives("focusformer.models.timm_models")
