"""How each kind of reference file is recomputed: the table behind `ecoformer verify FILE...`.

Everything is recomputed in float64 from the file's float32 numbers, through the forward passes that users call: what is
left of the difference is the rounding inside the file, and a code whose pre-activation lies near 0 does not flip.
"""

import dataclasses
from collections.abc import Callable

from ecoformer.verification import method, networks
from ecoformer.verification.method import PATHFINDER, Computed
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import Kind, Tolerance


def _in_float64(file: ReferenceFile) -> ReferenceFile:
    wide = {name: t.double() if t.is_floating_point() else t for name, t in file.tensors.items()}
    return dataclasses.replace(file, tensors=wide)


EXACT = ("out.labels", "out.codes", "out.train_codes", "out.residual")
LOSSES = ("out.loss_before", "out.loss_after", "out.surrogate_first", "out.surrogate_last")


def _tolerance(file: ReferenceFile, key: str) -> float | Tolerance:
    if key in EXACT or file.kind == "weight_conversion":
        return 0.0
    if key in LOSSES:
        return Tolerance(0.0, absolute=1e-4)
    if key.startswith("grad.") and file.kind in ("pvtv2", "twins", "eco_attention"):
        # A bias before a softmax or a norm may have a gradient of 0 but for the rounding of float32.
        return Tolerance(1e-5, floor=0.1 * file.largest("grad."))
    if key.startswith("grad."):
        # With one support and one token nothing depends on the token.
        return Tolerance(1e-5, floor=0.01 * file.largest("in.cotangent"))
    return 1e-5


def _kind(
    compute: Callable[[ReferenceFile], Computed], options: tuple[str, ...], *requires: str, limit: int = 4096
) -> Kind:
    limits = {"*": limit, "*.*": limit}
    return Kind(
        lambda file: compute(_in_float64(file)),
        _tolerance,
        options=(*options, "source"),
        requires=requires,
        limits=limits,
    )


_NETWORK = ("img", "classes", "dims", "heads", "depths", "nbits", "m", "norm_eps", "sr_ratios", "qkv_bias")
_FIT = ("nbits", "m", "topk", "learning_rate", "momentum", "nesterov", "iterations")
_LAYER = ("dim", "num_heads", "qkv_bias", "nbits", "m")

KINDS: dict[str, Kind] = {
    "similarity_labels": _kind(method.similarity_labels, ("topk",), "in.qk"),
    "hash_forward": _kind(method.hash_forward, ("heads", "head_dim", "nbits", "m"), "in.x", "sd.A"),
    "hash_fit": _kind(
        method.hash_fit, ("heads", "head_dim", *_FIT), "in.x", "in.anchor", "in.labels", "sd_before.A", "sd_after.A"
    ),
    "linear_attention": _kind(method.binary_attention, ("nbits", "bias"), "in.q", "in.k", "in.v"),
    "eco_attention": _kind(method.eco_attention, (*_LAYER, "is_trained"), "in.x", "sd.to_qk.weight"),
    "eco_attention_first_call": _kind(
        method.eco_attention_first_call, (*_LAYER, *_FIT, "anchors"), "in.x", "in.perm", "sd_before.to_qk.weight"
    ),
    "performer_attention": _kind(method.performer_attention, ("dim", "num_heads", "nb_features", "kernel"), "in.x"),
    "pvtv2": _kind(networks.pvtv2, (*_NETWORK, "mlp", "attn_type"), "in.x", limit=100_000),
    "twins": _kind(networks.twins, (*_NETWORK, "wss", "block", "patch_size", "mlp_ratios"), "in.x", limit=100_000),
    "weight_conversion": _kind(
        method.weight_conversion, ("embed_dims", "num_heads", "depths", "mlp_ratios", "num_classes"), "sd_sra.*",
        limit=100_000,
    ),
    "energy_table": Kind(
        method.energy_table, 0.0, results=("models.*.*",), requires=("config.models",), limits={"*.*.*": 2**62},
        parameters=200_000,  # every network of the paper, by its name
    ),
    "listops": Kind(
        method.listops, 0.0, results=("*.trees_tried", "*.first_30_lengths_tried", "*.examples"), options=None,
        limits={"*.max_depth": 12, "*.max_args": 12, "*.trees_tried": 1_000_000},
    ),
    "pathfinder32_samples": Kind(method.pathfinder_samples, 0.0, options=(*PATHFINDER, "source")),
}  # fmt: skip
