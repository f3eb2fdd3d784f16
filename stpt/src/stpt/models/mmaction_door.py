"""An opt-in to mmaction2's own models: its MViT, UniFormer and 3D Swin beside STPT's in one registry.

    from stpt.models.mmaction_door import open_door
    open_door()
    mmaction.registry.MODELS.build(dict(type="UniFormer", ...))
    mmaction.registry.MODELS.build(dict(type="STPTDetector", ...))

The wheel of mmaction2 1.2.0 lacks the folder `mmaction/models/localizers/drn`, so that `import mmaction.models` fails,
and with it every build from mmaction's registry and every Runner of `default_scope = "mmaction"`. Two module objects
take the folder's place, if it is not there. Nothing on the disk is changed, and nothing happens before the call: STPT's
own configs have a registry of their own (`paperkit.training.openmmlab.own_scope`) and need none of this.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from paperkit.errors import UserError

LACKING = "mmaction.models.localizers.drn"
OURS = ("STPTDetector", "STPTClassifier", "ClipPreprocessor")


class DRN:
    """Stands for mmaction's model of this name, which its wheel leaves out.

    Raises:
        UserError: whenever it is built.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        raise UserError("mmaction2 was installed without its model DRN; install it from its sources to have it")


def open_door() -> None:
    """Makes `mmaction.models` importable, and STPT's models buildable from `mmaction.registry.MODELS`; again is free.

    Raises:
        UserError: mmaction2 is not installed.
    """
    found = importlib.util.find_spec("mmaction")
    if found is None or found.origin is None:
        raise UserError("mmaction2 is not installed: pip install mmaction2==1.2.0")
    if LACKING not in sys.modules and not (Path(found.origin).parent / "models/localizers/drn/drn.py").is_file():
        package, module = ModuleType(LACKING), ModuleType(f"{LACKING}.drn")
        package.__path__ = []
        vars(module)["DRN"] = DRN
        sys.modules.update({package.__name__: package, module.__name__: module})
    importlib.import_module("mmaction.models")
    from mmaction.registry import MODELS

    from paperkit.training.openmmlab import own_scope

    for name in ("stpt.models.mm_detector", "stpt.models.mm_classifier"):
        importlib.import_module(name)
    for name in OURS:
        MODELS.register_module(name=name, module=own_scope("stpt").MODELS.module_dict[name], force=True)
