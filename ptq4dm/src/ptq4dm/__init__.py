"""PTQD: post-training quantisation of diffusion models with noise correction (arXiv 2305.10657).

Names are loaded when they are first used, so that the command line answers at once.
"""

import importlib
from typing import Any

_HOMES: dict[str, str] = {
    "PTQDScheduler": "models.ddim_scheduler",
    "NoiseStatistics": "method.noise_statistics",
    "QuantConfig": "method.quant_model",
    "quantize": "method.quant_model",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"ptq4dm.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'ptq4dm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
