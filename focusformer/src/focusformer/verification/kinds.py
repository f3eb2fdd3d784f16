"""How each kind of reference file is recomputed: the table behind `focusformer verify FILE...`.

Layers and networks are recomputed in float64 from the file's float32 numbers, through the forward passes that users
call: what is left of the difference is the rounding inside the file. Steps of training stay in float32, since Adam
divides small gradients by their own size and makes much of their rounding. Counts, draws and traces are exact.
"""

import dataclasses
from collections.abc import Callable

from focusformer.verification import layers, networks, spaces
from focusformer.verification.layers import Computed
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import Kind, Tolerance


def _in_float64(compute: Callable[[ReferenceFile], Computed]) -> Callable[[ReferenceFile], Computed]:
    def run(file: ReferenceFile) -> Computed:
        wide = {name: t.double() if t.is_floating_point() else t for name, t in file.tensors.items()}
        return compute(dataclasses.replace(file, tensors=wide))

    return run


def _tolerance(file: ReferenceFile, key: str) -> float | Tolerance:
    """1e-5; of gradients, which may be 0 but for rounding, at least of a thousandth of the file's largest.

    Of the key tables of a tenth: a softmax does not feel what all keys share, so that nearly all of it may cancel.
    """
    if key.startswith("out.flops"):
        return 0.0
    if key.startswith("grad."):
        return Tolerance(1e-5, floor=(0.1 if "rel_pos_embed_k" in key else 1e-3) * file.largest("grad."))
    return 1e-5


_SAID = ("seed", "note")
"""Options that say how a file was made; nothing is computed from them."""
_LIMITS = {"seed": 2**63, "*": 4096, "*.*": 4096, "*.*.*": 4096}
_SUPERNET = {"model.depth": 64, "model.img_size": 1024, **_LIMITS}  # the first that fits counts
_SUPERNET_OPTIONS = ("model", "cases", "grad_of", *_SAID)

KINDS: dict[str, Kind] = {
    "linear_super": Kind(
        _in_float64(layers.linear_super), _tolerance, options=("super_in_dim", "super_out_dim", "cases", *_SAID),
        requires=("in.x.*", "sd.weight"), limits=_LIMITS,
    ),
    "qkv_super": Kind(
        _in_float64(layers.qkv_super), _tolerance, options=("super_in_dim", "super_out_dim", "cases", *_SAID),
        requires=("in.x.*", "sd.weight"), limits=_LIMITS,
    ),
    "layernorm_super": Kind(
        _in_float64(layers.layernorm_super), _tolerance, options=("super_embed_dim", "cases", "eps", *_SAID),
        requires=("in.x.*", "sd.weight", "sd.bias"), limits=_LIMITS,
    ),
    "patch_embed_super": Kind(
        _in_float64(layers.patch_embed_super), _tolerance,
        options=("img_size", "patch_size", "in_chans", "embed_dim", "cases", *_SAID),
        requires=("in.x", "sd.proj.weight", "sd.proj.bias"), limits=_LIMITS,
    ),
    "relative_position_2d": Kind(
        _in_float64(layers.relative_position_2d), _tolerance,
        options=("num_units", "max_relative_position", "cases_head_dim_and_length", *_SAID),
        requires=("sd.embeddings_table_v", "sd.embeddings_table_h"), limits=_LIMITS,
    ),
    "attention_super": Kind(
        _in_float64(layers.attention_super), _tolerance,
        options=("super_embed_dim", "num_heads", "max_relative_position", "tokens", "cases", *_SAID),
        requires=("in.x.*", "sd.*"), limits=_LIMITS,
    ),
    "encoder_layer": Kind(
        _in_float64(layers.encoder_layer), _tolerance,
        options=("dim", "num_heads", "mlp_ratio", "max_relative_position", "tokens", "cases_embed_heads_ratio",
                 "pre_norm", "scale", "relative_position", "change_qkv", "qkv_bias", *_SAID),
        requires=("in.x.*", "sd.*"), limits=_LIMITS,
    ),
    "supernet": Kind(
        _in_float64(networks.supernet), _tolerance, options=_SUPERNET_OPTIONS,
        requires=("in.x", "in.target", "sd.*"), limits=_SUPERNET,
    ),
    "train_steps": Kind(
        networks.train_steps, 1e-4,
        options=(*_SUPERNET_OPTIONS, "optimizer", "lr", "weight_decay", "zero_grad", "loss"),
        requires=("in.x.*", "in.target.*", "sd.*"), limits=_SUPERNET,
    ),
    "counts": Kind(
        spaces.counts, 0.0,
        options=("spaces", "row_layout", "img_size", "patch_size", "num_classes", "sequence_length_argument",
                 *_SAID),
        requires=("config.spaces", "in.*.architectures"),
        limits={"spaces.*.*.DEPTH": 64, "img_size": 4096, "patch_size": 4096},
    ),
    "uniform_sampling": Kind(
        spaces.uniform_sampling, 0.0, options=("seeds", "n", "row_layout", "rng", "note"), requires=("out.*",),
        limits={"n": 10_000, "seeds.*": 2**63},
    ),
    "evolution_search": Kind(
        spaces.evolution_search, 0.0,
        options=("space", "min_param_limits_M", "param_limits_M", "args", "fake_accuracy", "row_layout", *_SAID),
        requires=("out.*",), limits={"args.max_epochs": 100, "args.*": 1000},
    ),
}  # fmt: skip
