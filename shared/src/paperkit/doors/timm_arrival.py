"""Fill timm's registry without importing timm: at once if it is loaded, else right after somebody loads it."""

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

_TIMM = "timm.models"


class _AfterTimm(MetaPathFinder):
    """Finds nothing itself: lets the real finders load timm's models, then imports `module`."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _TIMM:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_then_register(module: ModuleType) -> None:
                load(module)
                sys.modules.setdefault(_TIMM, module)
                importlib.import_module(self.module)

            spec.loader.exec_module = load_then_register  # type: ignore[method-assign]
        return spec


def when_timm_arrives(module: str) -> None:
    """Import `module` (which registers models) now or when `timm.models` is imported."""
    if _TIMM in sys.modules and not getattr(sys.modules[_TIMM].__spec__, "_initializing", False):
        importlib.import_module(module)
    else:
        sys.meta_path.insert(0, _AfterTimm(module))
