"""SPT: parameter-efficient fine-tuning that spends its budget where the task is sensitive (He et al., ICCV 2023)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spt.deployment.hot_swap import HotSwap
    from spt.method.sensitivity import measure_sensitivities
    from spt.models.spt_model import SPTConfig, SPTModel, get_spt_model

__all__ = ["HotSwap", "SPTConfig", "SPTModel", "get_spt_model", "measure_sensitivities"]

_HOMES = {
    "HotSwap": "deployment.hot_swap",
    "SPTConfig": "models.spt_model",
    "SPTModel": "models.spt_model",
    "get_spt_model": "models.spt_model",
    "measure_sensitivities": "method.sensitivity",
}


def __getattr__(name: str) -> Any:
    """Imports the public names on first use: the command line's help must not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(f"spt.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'spt' has no attribute {name!r}")
