"""Reference files of packed bits and of the ledger, recomputed."""

from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor

from bivit.method.binary_linear import RULES, BinaryLinear
from bivit.method.ledger import SIZES, VARIANTS, ledger
from bivit.method.packing import (
    active_keys,
    pack_bits,
    pack_nonzeros,
    pack_signs,
    packed_dot,
    packed_linear,
    packed_sums,
)
from bivit.method.softmax_aware import hamming_margin
from bivit.verification.layers import Computed
from paperkit.errors import UserError
from paperkit.files.keys import load_strict
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import check_options


def _plane(x: Tensor) -> Tensor | None:
    """The plane of non-zeros where it is needed."""
    return pack_nonzeros(x) if (x == 0).any() else None


def packed_linear_layer(file: ReferenceFile) -> Computed:
    """A linear layer on bits."""
    c, x = file.config, file.inputs["x"]
    layer = BinaryLinear(c["in_features"], c["out_features"], RULES["pws"]).to(x.dtype)
    load_strict(layer, file.state, "the state dict")
    with torch.no_grad():
        if not layer.scale().any():
            layer.start_scale()
        centred, scale = layer.centred_weight(), layer.scale().flatten()
    bits, weight_bits, planes = pack_signs(x), pack_signs(centred), (_plane(x), _plane(centred))
    dot = packed_dot(bits, weight_bits, c["in_features"], *planes)
    return {
        "out.x_bits": bits,
        "out.w_bits": weight_bits,
        "out.x_nonzero_bits": pack_nonzeros(x),
        "out.dot": dot,
        "out.y": packed_linear(bits, weight_bits, c["in_features"], scale, layer.bias.detach(), *planes),
    }


def packed_attention(file: ReferenceFile) -> Computed:
    """Attention on bits, by the rule on integers in the place of the softmax."""
    c = file.config
    q, k, v = (file.inputs[name] for name in ("q", "k", "v"))
    q_bits, k_bits, vt_bits = pack_signs(q), pack_signs(k), pack_signs(v.mT)
    dot = packed_dot(q_bits, k_bits, c["head_dim"], _plane(q), _plane(k))
    active = active_keys(dot, c["head_dim"])
    active_bits = pack_bits(active)
    return {
        "out.q_bits": q_bits,
        "out.k_bits": k_bits,
        "out.vt_bits": vt_bits,
        "out.dot": dot,
        "out.attn": active.to(torch.uint8),
        "out.attn_bits": active_bits,
        "out.context": packed_sums(active_bits, vt_bits, _plane(v.mT)),
        "config.hamming_margin": hamming_margin(c["head_dim"]),
    }


_COUNTED = ("deit_*", "vit_*_patch*", "swin_*", "nest_*", "pvt_v2_b*")
_NUMBERS = ("params", "params_in_attn_and_mlp", "binary_weights", "output_channels", "layer_norm_elements")
_MACS = ("full_precision", "attention_linear", "attention_matmul", "mlp_linear")


def ops_ledger(file: ReferenceFile) -> Computed:
    """Every model that the file has, by its name in timm, on the meta device."""
    computed: Computed = {}
    for name, row in file.config.items():
        if not any(fnmatchcase(name, pattern) for pattern in _COUNTED) or not timm.is_model(name):
            raise UserError(f"no model {name!r} to count; known are timm's DeiT, ViT, Swin, NesT and PVTv2")
        check_options(row, ("input", "macs", "ops", "size_bytes", *_NUMBERS), f"config.{name}")
        for part, known in (("macs", _MACS), ("ops", VARIANTS), ("size_bytes", SIZES)):
            check_options(row.get(part, {}), known, f"config.{name}.{part}")
        side = int(row.get("input", 224))
        resized: dict[str, Any] = {} if name.startswith("pvt") or side == 224 else {"img_size": side}
        computed[f"config.{name}"] = ledger(partial(timm.create_model, name, **resized), (3, side, side)).as_dict()
    return computed
