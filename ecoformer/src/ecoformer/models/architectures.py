"""The networks by name, a size and its attention: `pvt_v2_b0_ecoformer`, `alt_gvt_small_msa`, `pvt_v2_b2_sra`."""

import difflib
import re
from typing import Any

from ecoformer.models import pvt, twins
from ecoformer.models.pvt import PVTv2
from ecoformer.models.twins import Twins
from paperkit.errors import UserError

PVT_FORMS = {f"_{kind}": dict(attn_type=kind) for kind in ("ecoformer", "msa", "msa_share_qk", "sra", "performer")}
TWINS_FORMS = {
    "_ecoformer": dict(block="EcoBlock"),
    "_msa": dict(block="StandardBlock"),
    "_sra": dict(block="GroupBlock"),
    "_gsa_to_msa": dict(block="GroupBlockv2"),
}
DROP_PATH = {"pvt": 0.1, "alt": 0.2}
"""Of the released recipes, when a network is trained in training mode."""

ARCHITECTURES: dict[str, dict[str, Any]] = {
    size + form: {**options, **changes}
    for sizes, forms in ((pvt.SIZES, PVT_FORMS), (twins.SIZES, TWINS_FORMS))
    for size, options in sizes.items()
    for form, changes in forms.items()
}


def architecture(name: str) -> dict[str, Any]:
    """Constructor arguments of a network; `_nbits8` and the like behind the name set the length of the codes.

    Raises:
        UserError: no such network; the nearest names.
    """
    stem, _, bits = name.partition("_nbits")
    if stem not in ARCHITECTURES or (bits and not re.fullmatch(r"[1-9]\d{0,3}", bits)) or name.endswith("_nbits"):
        near = difflib.get_close_matches(stem, ARCHITECTURES, 3) or ["pvt_v2_b0_ecoformer", "alt_gvt_small_ecoformer"]
        raise UserError(f"no network '{name}'; there are {', '.join(near)} ..., with _nbits8 and the like behind them")
    return {**ARCHITECTURES[stem], **(dict(nbits=int(bits)) if bits else {})}


def build(name: str, **changes: Any) -> PVTv2 | Twins:
    """A network by name, some arguments changed.

    Raises:
        UserError: as `architecture`.
    """
    options = {**architecture(name), **changes}
    return PVTv2(**options) if name.startswith("pvt") else Twins(**options)
