"""Fill another library's registry without importing it: at once if it is loaded, else right after somebody loads it."""

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType


class _After(MetaPathFinder):
    """Finds nothing itself: lets the real finders load `awaited`, then imports `module`."""

    def __init__(self, awaited: str, module: str) -> None:
        self.awaited, self.module = awaited, module

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.awaited:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_then_register(module: ModuleType) -> None:
                load(module)
                sys.modules.setdefault(self.awaited, module)
                importlib.import_module(self.module)

            spec.loader.exec_module = load_then_register  # type: ignore[method-assign]
        return spec


def when_arrives(awaited: str, module: str) -> None:
    """Import `module` (which registers something in `awaited`) now or when `awaited` is imported."""
    if awaited in sys.modules and not getattr(sys.modules[awaited].__spec__, "_initializing", False):
        importlib.import_module(module)
    else:
        sys.meta_path.insert(0, _After(awaited, module))
