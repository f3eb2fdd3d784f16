"""Energy ledgers of a network beside those that it is to be compared with: full attention, and the unmodified model."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import timm

from ecoformer.method.energy import Ledger, ledger
from ecoformer.models.architectures import ARCHITECTURES, build
from ecoformer.models.conversion import load_classifier
from ecoformer.models.released import size_name
from ecoformer.models.swap import convert
from paperkit.errors import UserError


def ledgers(model: str, input_size: Sequence[int] = (3, 224, 224), strict: bool = False) -> dict[str, Ledger]:
    """Ledgers by name, that of `model` first.

    Args:
        model: one of our names (`pvt_v2_b0_ecoformer`, `_nbits8` behind it), a run folder, a folder of
            `save_pretrained` or a checkpoint file, or a timm name, whose network is converted.
        input_size: of one image. strict: see `ecoformer.method.energy`.

    Raises:
        UserError: none of these.
    """
    stem = model.partition("_nbits")[0]
    if stem in ARCHITECTURES:
        size = next(
            s for s in ("_msa_share_qk", "_gsa_to_msa", "_ecoformer", "_performer", "_msa", "_sra") if stem.endswith(s)
        )
        names = dict.fromkeys([model, stem.removesuffix(size) + "_msa", stem.removesuffix(size) + "_sra"])
        return {name: ledger(partial(build, name), input_size, strict=strict) for name in names}
    if Path(model).exists():
        network = load_classifier(model)
        found = {model: ledger(network, input_size, strict=strict)}
        options = {"embed_dims": network.embed_dims, "depths": network.depths}
        heads = [network.get_submodule(n).num_heads for n, m in network.named_modules() if n.endswith("0.attn")]
        name = size_name({**options, "num_heads": heads})
        more = [f"{name}{form}" for form in ("_msa", "_sra")] if name else []
        return found | {n: ledger(partial(build, n), input_size, strict=strict) for n in more}
    if timm.is_model(model):
        fixed = timm.get_pretrained_cfg_value(model, "fixed_input_size")
        of_size: dict[str, Any] = {"img_size": tuple(input_size[1:])} if fixed else {}
        other = timm.create_model(model, **of_size)
        changed = copy.deepcopy(other)
        convert(changed)
        book, whole = (ledger(network, input_size, strict=strict) for network in (changed, other))
        full = replace(whole, layers=[replace(layer, kind="msa", operations=layer.softmax) for layer in whole.layers])
        return {f"{model}, converted": book, f"{model}, full softmax in its layers": full, model: whole}
    raise UserError(
        f"'{model}' is no network of ours or timm's, and no run folder or checkpoint; e.g. pvt_v2_b0_ecoformer"
    )
