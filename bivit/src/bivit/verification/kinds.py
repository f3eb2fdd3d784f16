"""How each kind of reference file is recomputed: the table behind `bivit verify FILE...`.

Layers and networks are recomputed in float64 from the file's float32 numbers, through the forward passes that users
call: what is left of the difference is the rounding inside the file. Quantisers, which compare, stay in float32.
"""

import dataclasses
from collections.abc import Callable

from bivit.verification import bits, layers, networks
from bivit.verification.layers import Computed
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import Kind, Tolerance

EXACT = ("out.binary", "out.binary_approx", "out.attn", "out.context", "out.weight_sign")


def _in_float64(compute: Callable[[ReferenceFile], Computed]) -> Callable[[ReferenceFile], Computed]:
    def run(file: ReferenceFile) -> Computed:
        wide = {name: t.double() if t.is_floating_point() else t for name, t in file.tensors.items()}
        return compute(dataclasses.replace(file, tensors=wide))

    return run


def _layer(file: ReferenceFile, key: str) -> float:
    return 0.0 if key in EXACT else 1e-5


def _network(file: ReferenceFile, key: str) -> float | Tolerance:
    return Tolerance(1e-4, floor=1e-3 * file.largest("grad.")) if key.startswith("grad.") else 1e-5


_LIMITS = {"*": 4096, "*.*": 4096}
_MODEL = ("img", "patch", "heads", "mlp_ratio", "classes", "norm_eps", "attention", "mlp")
_LEDGER = ("params", "params_in_attn_and_mlp", "binary_weights", "output_channels", "layer_norm_elements")

KINDS: dict[str, Kind] = {
    "quantizer": Kind(
        layers.quantizer, lambda file, key: 1e-6 if file.config["quantizer"] == "bool_scaled" else 0.0,
        options=("quantizer",), requires=("in.x",),
    ),
    "elastic": Kind(
        layers.elastic, lambda file, key: 1e-4 if key == "grad.alpha" else 1e-6,
        options=("signed", "bits", "alpha_init"), requires=("in.x", "in.alpha"),
    ),
    "sab": Kind(
        _in_float64(layers.sab), _layer, options=("backward", "beta", "masked"), requires=("in.logits",),
    ),
    "sab_optimal": Kind(
        _in_float64(layers.sab_optimal), lambda file, key: 0.0 if key in EXACT else 1e-9,
        options=("iterations", "beta"), requires=("in.softmax",), limits={"iterations": 1000},
    ),
    "binary_linear": Kind(
        _in_float64(layers.binary_linear), _layer,
        options=("class", "in_features", "out_features", "first_forward", "zeros_in_input"),
        requires=("in.x", "sd.weight", "sd.bias"), limits=_LIMITS,
    ),
    "binary_attention": Kind(
        _in_float64(layers.binary_attention), _layer, options=("class", "dim", "num_heads"),
        requires=("in.x", "sd.qkv.weight"), limits=_LIMITS,
    ),
    "binary_mlp": Kind(
        _in_float64(layers.binary_mlp), _layer, options=("class", "dim", "hidden"),
        requires=("in.x", "sd.fc1.weight"), limits=_LIMITS,
    ),
    "deit_model": Kind(
        _in_float64(networks.deit), _network, options=(*_MODEL, "dim", "depth"), requires=("in.x", "sd.*"),
        limits=_LIMITS,
    ),
    "swin_model": Kind(
        _in_float64(networks.swin), _network, options=(*_MODEL, "dim", "depths", "window"),
        requires=("in.x", "sd.*"), limits=_LIMITS,
    ),
    "nest_model": Kind(
        _in_float64(networks.nest), _network, options=(*_MODEL, "dims", "depths"), requires=("in.x", "sd.*"),
        limits=_LIMITS,
    ),
    "packed_linear": Kind(
        _in_float64(bits.packed_linear_layer), 1e-5, options=("in_features", "out_features", "zeros_in_input"),
        requires=("in.x", "sd.weight", "sd.bias", "sd.scaling_factor"), limits=_LIMITS,
    ),
    "packed_attention": Kind(
        bits.packed_attention, 0.0, results=("hamming_margin",), options=("head_dim",),
        requires=("in.q", "in.k", "in.v"), limits=_LIMITS,
    ),
    "distribution_loss": Kind(
        _in_float64(layers.distillation), 1e-6, options=(), requires=("in.student_logits", "in.teacher_logits"),
    ),
    "ops_ledger": Kind(
        bits.ops_ledger, 0.0, results=(*(f"*.{name}" for name in _LEDGER), "*.macs.*", "*.ops.*", "*.size_bytes.*"),
        options=None, config_tolerance=1e-9, limits={"*.input": 1024},
        parameters=200_000,  # whole networks of the paper, by their names
    ),
}  # fmt: skip
