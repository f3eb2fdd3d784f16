"""STPT: an efficient spatio-temporal pyramid transformer for action detection (arXiv 2207.10448).

Names are loaded when they are first used, so that the command line answers at once.
"""

import importlib
from typing import Any

_HOMES: dict[str, str] = {}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"stpt.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'stpt' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
