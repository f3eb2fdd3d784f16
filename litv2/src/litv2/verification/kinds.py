"""How each kind of reference file is recomputed: the table behind `litv2 verify FILE...`.

Everything is recomputed in float64 from the file's float32 weights and inputs, through the same forward passes that
users call: what is left of the difference is the rounding inside the file. (In float32 two correct implementations of a
whole network with random offsets lie up to 1.5e-5 apart, which is more than the tolerance.)
"""

import dataclasses
from collections.abc import Callable, Mapping

from litv2.figures.frequency import log_magnitude, log_magnitude_as_published
from litv2.figures.offset_trace import pixel_positions, trace_offsets
from litv2.method import mechanisms
from litv2.verification.layers import (
    Computed,
    cross_covariance_attention,
    cross_window_attention,
    recompute_block,
    recompute_conv_ffn,
    recompute_hilo,
    recompute_mechanism,
    recompute_merging,
    recompute_patch_embed,
    relative_attention,
    self_attention,
    window_attention,
)
from litv2.verification.networks import (
    NETWORK,
    recompute_backbone,
    recompute_litv1,
    recompute_litv2,
    recompute_litv2_train,
    recompute_macs,
    recompute_optim_schedule,
)
from paperkit.verification.verify import Kind, ReferenceFile, Tolerance


def _frequency(file: ReferenceFile) -> Computed:
    x = file.inputs["x"]
    return {"out.mean_spatial_shift": log_magnitude(x), "out.mean_all_axes_shift": log_magnitude_as_published(x)}


def _offset_trace(file: ReferenceFile) -> Computed:
    c = file.config
    levels = sum(name.startswith("offset_level") for name in file.inputs)
    offsets = [file.inputs[f"offset_level{i}"] for i in range(levels)]
    computed = {}
    for row, column in c["targets"]:
        places = trace_offsets(offsets, (row, column))
        computed[f"out.source_yx_{row}_{column}"] = places
        computed[f"out.sample_xy_{row}_{column}"] = pixel_positions(places, c["image"], c["plot_area"])
    return computed


def _in_float64(file: ReferenceFile) -> ReferenceFile:
    wide = {name: t.double() if t.is_floating_point() else t for name, t in file.tensors.items()}
    return dataclasses.replace(file, tensors=wide)


def _tolerance(file: ReferenceFile, key: str) -> float | Tolerance:
    if not key.startswith("grad."):
        # A training step takes BatchNorm's statistics from a batch of a few tokens, which makes rounding larger: the
        # files' float32 lies up to 3.5e-5 from the exact result, by the processor that they were made on.
        return 1e-4 if file.kind == "litv2_train" else 1e-5
    relative, largest = 2e-4 if file.kind == "litv2_train" else 1e-4, file.largest("grad.")
    if file.kind in ("dtm_train", "litv2_train") and key.endswith("dconv.bias"):
        # BatchNorm takes the mean away, so this gradient is 0; the file holds the rounding of float32.
        return Tolerance(relative, floor=0.1 * largest)
    # A softmax over one key is constant: where the whole map is one window, l_q has a gradient of 0 but for rounding.
    return Tolerance(relative, floor=1e-3 * largest)


LAYER = ("dim", "H", "W", "num_heads", "qkv_bias", "source")


def _kind(
    compute: Callable[[ReferenceFile], Computed],
    options: tuple[str, ...],
    *results: str,
    x: str = "in.x",
    limits: Mapping[str, int] = {},
) -> Kind:
    return Kind(
        lambda file: compute(_in_float64(file)),
        _tolerance,
        results=results,
        options=(*options, "source"),
        requires=(x,),
        limits=limits,
    )


_WINDOW = _kind(recompute_mechanism(window_attention), (*LAYER, "window_size", "shift_size", "use_rel_pos"))
_MERGE = ("dim", "H", "W", "kernel_size", "stride", "padding", "mode", "train")
DEPTHS = {"depths.*": 100}  # blocks of a stage; the published sizes have 18 at most
_BACKBONE = _kind(
    recompute_backbone, (*NETWORK, "task", "out_indices", "out_norms", "sizes"), x="in.image_*", limits=DEPTHS
)

KINDS: dict[str, Kind] = {
    "hilo": _kind(
        recompute_hilo, (*LAYER, "qk_scale", "window_size", "alpha", "padded"),
        "l_heads", "h_heads", "l_dim", "h_dim", "flops_N", "flops_HW",
    ),
    "conv_ffn": _kind(recompute_conv_ffn, ("dim", "hidden", "H", "W", "act", "order")),
    "block_convffn": _kind(recompute_block, (*LAYER, "mlp_ratio"), "flops"),
    "block_hilo": _kind(recompute_block, (*LAYER, "mlp_ratio", "window_size", "alpha", "qk_scale"), "flops"),
    "dtm_eval": _kind(recompute_merging, _MERGE, "max_abs_offset"),
    "dtm_train": _kind(recompute_merging, _MERGE, "max_abs_offset"),
    "dtm_offset_trace": _kind(_offset_trace, ("base_grid", "image", "targets", "plot_area"), x="in.offset_level0"),
    "patch_embed_padded": _kind(recompute_patch_embed, ("patch_size", "embed_dim"), x="in.image"),
    "litv2": _kind(recompute_litv2, (*NETWORK, "img_sizes"), "official_flops", x="in.image_*", limits=DEPTHS),
    "litv2_train": _kind(recompute_litv2_train, (*NETWORK, "img_size", "loss"), x="in.target", limits=DEPTHS),
    "litv1": _kind(
        recompute_litv1, (*NETWORK, "img_size"), "official_flops", x="in.image", limits={**DEPTHS, "img_size": 512}
    ),
    "backbone_seg": _BACKBONE,
    "backbone_det": _BACKBONE,
    "macs": _kind(recompute_macs, ("models",), x="config.models", limits={"models.*.depths.*": 100}),
    "optim_schedule": _kind(
        recompute_optim_schedule,
        ("base_lr_config", "world_size", "batch_per_gpu", "epochs", "warmup_epochs", "iters_per_epoch",
         "offset_lr_multi",
         "timm"),
        "groups", x="out.lr", limits={"epochs": 1000, "iters_per_epoch": 2000},
    ),
    "frequency_magnitude": _kind(_frequency, ("H", "W")),
    "attn_msa": _kind(recompute_mechanism(self_attention), LAYER),
    "attn_relpos": _kind(recompute_mechanism(relative_attention), LAYER),
    "cmp_sra": _kind(
        recompute_mechanism(
            lambda c: mechanisms.SpatialReductionAttention(
                c["dim"], c["num_heads"], c["sr_ratio"], c.get("qkv_bias", True)
            )
        ),
        (*LAYER, "sr_ratio"),
    ),
    "cmp_window": _WINDOW,
    "cmp_shifted_window": _WINDOW,
    "cmp_cross_window": _kind(
        recompute_mechanism(cross_window_attention),
        (*LAYER, "split_size"),
    ),
    "cmp_xca": _kind(
        recompute_mechanism(cross_covariance_attention), LAYER
    ),
    "cmp_linformer": _kind(
        recompute_mechanism(
            lambda c: mechanisms.Linformer(
                c["dim"], c["num_heads"], c["seq_len"], c["lin_feat"], c.get("qkv_bias", True)
            )
        ),
        (*LAYER, "lin_feat", "seq_len"),
    ),
    "cmp_van": _kind(recompute_mechanism(lambda c: mechanisms.LargeKernelAttention(c["dim"])), LAYER),
    "cmp_gnconv": _kind(
        recompute_mechanism(lambda c: mechanisms.GatedConvolution(c["dim"], c["order"], c["s"])), (*LAYER, "order", "s")
    ),
}  # fmt: skip
