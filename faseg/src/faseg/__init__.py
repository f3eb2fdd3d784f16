"""FASeg: dynamic focus-aware positional queries for semantic segmentation (arXiv 2204.01244).

Names are loaded when they are first used, so that the command line answers at once.
"""

import importlib
from typing import Any

_HOMES: dict[str, str] = {}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"faseg.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'faseg' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
