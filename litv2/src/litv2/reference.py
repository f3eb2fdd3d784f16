"""How each kind of reference file is recomputed: the table behind ``litv2 verify FILE...``.

Everything is recomputed in float64 from the file's float32 weights and inputs, through the same forward passes that
users call: what is left of the difference is the rounding inside the file. (In float32 two correct implementations of a
whole network with random offsets lie up to 1.5e-5 apart, which is more than the tolerance.)
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from litv2 import mechanisms
from litv2.backbone import LITv2Backbone
from litv2.classifier import LITv2
from litv2.conv_ffn import ConvFFN
from litv2.costs import block_macs, official_macs
from litv2.deformable_merging import DeformableMerging
from litv2.frequency import log_magnitude, log_magnitude_as_published
from litv2.hilo import HiLo
from litv2.offset_trace import pixel_positions, trace_offsets
from litv2.optim_groups import OfficialSchedule, Recipe, group_names, make_optimizer, rates
from litv2.pyramid import Block, PatchEmbed
from paperkit.checkpoints import load_strict
from paperkit.errors import UserError
from paperkit.verify import Kind, ReferenceFile, Tolerance, check_options

Computed = Mapping[str, Any]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def _load(module: ModuleT, file: ReferenceFile) -> ModuleT:
    load_strict(module.double(), file.state, "the file's sd.*")
    return module.eval()


def _in_float64(file: ReferenceFile) -> ReferenceFile:
    wide = {name: t.double() if t.is_floating_point() else t for name, t in file.tensors.items()}
    return dataclasses.replace(file, tensors=wide)


def _gradients(module: nn.Module, x: Tensor, y: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    """Gradients of sum(y * cotangent) under the files' names."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    grads = torch.autograd.grad(y, (x, *parameters), cotangent, allow_unused=True)
    return {
        f"grad.{'x' if name is None else f'sd.{name}'}": grad
        for name, grad in zip((None, *names), grads, strict=True)
        if grad is not None
    }


def _layer(file: ReferenceFile, module: nn.Module, state: bool = True) -> tuple[Tensor, dict[str, Any]]:
    """Forward and backward of a layer that takes tokens of an H x W grid: (y, computed)."""
    if state:
        _load(module, file)
    x = file.inputs["x"].requires_grad_()
    y = module(x, file.config["H"], file.config["W"])
    computed: dict[str, Any] = {"out.y": y}
    if "cotangent" in file.inputs:
        computed.update(_gradients(module, x, y, file.inputs["cotangent"]))
    return y, computed


def _hilo(file: ReferenceFile) -> Computed:
    c = file.config
    layer = HiLo(c["dim"], c["num_heads"], c["window_size"], c["alpha"], c.get("qkv_bias", True), c.get("qk_scale"))
    _, computed = _layer(file, layer)
    grid = file.inputs["x"].detach().unflatten(1, (c["H"], c["W"]))
    hifi, lofi = layer.branches(grid)
    flops = layer.flops(c["H"], c["W"])
    facts = dict(l_heads=layer.l_heads, h_heads=layer.h_heads, l_dim=layer.l_dim, h_dim=layer.h_dim)
    facts.update(flops_N=flops, flops_HW=flops)
    return {
        **computed,
        **{f"out.{name}": y for name, y in (("hifi_grid", hifi), ("lofi_grid", lofi)) if y is not None},
        **{f"config.{key}": value for key, value in facts.items()},
    }


def _expect(config: Mapping[str, Any], key: str, known: str) -> None:
    """A described option has the one value that the rule computes, or is left out."""
    if config.get(key, known) != known:
        raise UserError(f"option {key} is {config[key]!r}; known: {known!r}")


def _conv_ffn(file: ReferenceFile) -> Computed:
    _expect(file.config, "act", "gelu (erf)")
    return _layer(file, ConvFFN(file.config["dim"], file.config["hidden"]))[1]


class _TokenBlock(nn.Module):
    """A block on tokens; its parameters stay those of the block."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        return self.block(x.unflatten(1, (H, W))).flatten(1, 2)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return self.block.named_parameters()


def _block(file: ReferenceFile) -> Computed:
    c = file.config
    attention, macs = None, 0
    if file.kind == "block_hilo":
        attention = HiLo(
            c["dim"], c["num_heads"], c["window_size"], c["alpha"], c.get("qkv_bias", True), c.get("qk_scale")
        )
        macs = attention.flops(c["H"], c["W"])
    block = Block(c["dim"], int(c["dim"] * c["mlp_ratio"]), attention, conv=True, drop=0.0, path=0.0)
    computed = _layer(file, _TokenBlock(_load(block, file)), state=False)[1]
    return {**computed, "config.flops": block_macs(c["H"], c["W"], c["dim"], c["mlp_ratio"], True, macs)}


def _merging(file: ReferenceFile) -> Computed:
    c = file.config
    if (c.get("kernel_size", 2), c.get("stride", 2), c.get("padding", 0)) != (2, 2, 0):
        raise UserError("the merging has kernel 2, stride 2, padding 0")
    if c.get("mode", "cls") not in ("cls", "det", "seg"):
        raise UserError(f"mode {c['mode']!r} is unknown; known: cls, det, seg")
    merging = _load(DeformableMerging(c["dim"]), file)
    merging.train(c["train"])
    x = file.inputs["x"].requires_grad_()
    grid = x.unflatten(1, (c["H"], c["W"]))
    offset = merging.dconv.offsets(grid)
    sampled = merging.dconv(grid)
    y = merging(grid).flatten(1, 2)
    computed: dict[str, Any] = {
        "out.y": y,
        "out.offset": offset.permute(0, 3, 1, 2),
        "out.dconv": sampled.permute(0, 3, 1, 2),
        **{f"out.{name}_after": buffer for name, buffer in merging.norm_layer.named_buffers()},
    }
    if "cotangent" in file.inputs:
        computed.update(_gradients(merging, x, y, file.inputs["cotangent"]))
    if "max_abs_offset" in c:
        largest, told = offset.abs().max().item(), c["max_abs_offset"]
        agree = isinstance(told, (int, float)) and abs(largest - told) <= 1e-5 * largest
        computed["config.max_abs_offset"] = told if agree else largest
    return computed


def _patch_embed(file: ReferenceFile) -> Computed:
    image = file.inputs["image"]
    layer = _load(PatchEmbed(file.config["patch_size"], image.shape[1], file.config["embed_dim"]), file)
    return {"out.y": layer(image).permute(0, 3, 1, 2)}


NETWORK = (
    "patch_size", "in_chans", "num_classes", "embed_dim", "depths", "num_heads", "mlp_ratio", "qkv_bias", "alpha",
    "local_ws", "has_msa", "drop_path_rate",
)  # fmt: skip


def _network_options(file: ReferenceFile, *without: str) -> dict[str, Any]:
    return {key: file.config[key] for key in NETWORK if key in file.config and key not in without}


def _litv2(file: ReferenceFile) -> Computed:
    model = LITv2(**_network_options(file))
    _load(model, file)
    computed: dict[str, Any] = {}
    for side in file.config["img_sizes"]:
        image = file.inputs[f"image_{side}"]
        x = model.patch_embed(image)
        computed[f"out.patch_embed_{side}"] = x.flatten(1, 2)
        for i, stage in enumerate(model.layers):
            x = stage(x)
            if (downsample := cast(Any, stage).downsample) is not None:
                x = downsample(x)
            computed[f"out.stage{i}_{side}"] = x.flatten(1, 2)
        computed[f"out.features_{side}"] = model.forward_head(model.norm(x), pre_logits=True)
        computed[f"out.logits_{side}"] = model(image)
    computed["config.official_flops"] = {side: model.macs(side, official=True) for side in file.config["img_sizes"]}
    return computed


def _litv2_train(file: ReferenceFile) -> Computed:
    _expect(file.config, "loss", "soft target cross entropy, mean over batch")
    model = _load(LITv2(**_network_options(file)), file).train()
    logits = model(file.inputs["image"])
    loss = -(file.inputs["target"] * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in grads.values()]))
    return {
        "out.logits": logits,
        "out.loss": loss.reshape(1),
        "out.grad_norm": norm.reshape(1),
        **{f"out.buffer_after.{name}": buffer for name, buffer in model.named_buffers()},
        **{f"grad.sd.{name}": grad for name, grad in grads.items()},
    }


def _litv1(file: ReferenceFile) -> Computed:
    c = file.config
    model = LITv2(attention="msa", pos="rel", img_size=c["img_size"], **_network_options(file))
    _load(model, file)
    features = model.forward_head(model.forward_features(file.inputs["image"]), pre_logits=True)
    return {
        "out.features": features,
        "out.logits": model.head(features),
        "config.official_flops": model.macs(c["img_size"], official=True),
    }


def _backbone(file: ReferenceFile) -> Computed:
    c = file.config
    default = (0, 1, 2, 3) if file.kind == "backbone_seg" else (1, 2, 3)
    if c.get("task", file.kind[-3:]) != file.kind[-3:]:
        raise UserError(f"task {c['task']!r} in a file of kind {file.kind}")
    indices = c.get("out_indices", (0, 1, 2, 3))
    model = LITv2Backbone(indices, c.get("out_norms", default), **_network_options(file, "num_classes"))
    _load(model, file)
    computed = {}
    for height, width in c["sizes"]:
        for i, y in zip(indices, model(file.inputs[f"image_{height}x{width}"]), strict=True):
            computed[f"out.c{i + 2}_{height}x{width}"] = y
    return computed


def _macs(file: ReferenceFile) -> Computed:
    params, macs = [], []
    for c in file.config["models"]:
        check_options(c, ("img", "alpha", "local_ws", "embed_dim", "depths", "num_heads", "nc"), "a model of the list")
        options = dict(embed_dim=c["embed_dim"], depths=c["depths"], num_heads=c["num_heads"])
        options.update(
            alpha=c.get("alpha", 0.9), local_ws=c.get("local_ws", (0, 0, 2, 1)), num_classes=c.get("nc", 1000)
        )
        with torch.device("meta"):
            model = LITv2(**options)
        params.append(sum(p.numel() for p in model.parameters()))
        macs.append(official_macs(c["img"], **options))
    return {"out.params": torch.tensor(params), "out.macs": torch.tensor(macs)}


def _optim_schedule(file: ReferenceFile) -> Computed:
    """The tiny model's options are not in the file: they are those of the ``litv2_tiny*`` files."""
    c = file.config
    tiny = dict(embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), num_classes=10, alpha=0.9)
    model = LITv2(**tiny)  # type: ignore[arg-type]
    recipe = Recipe(lr=c["base_lr_config"], epochs=c["epochs"], warmup_epochs=c["warmup_epochs"])
    recipe.offset_lr_multi = c["offset_lr_multi"]
    recipe = recipe.scaled(c["world_size"] * c["batch_per_gpu"])
    optimizer = make_optimizer(model, recipe)
    names = group_names(model)
    groups = [
        {"names": names[group["name"]], "lr": group["base_lr"], "weight_decay": group["weight_decay"]}
        for group in optimizer.param_groups
    ]
    schedule = OfficialSchedule(optimizer, recipe, c["iters_per_epoch"])
    rows = [list(rates(optimizer))]
    for _ in range(c["epochs"] * c["iters_per_epoch"]):
        schedule.step()
        rows.append(list(rates(optimizer)))
    return {"out.lr": torch.tensor(rows, dtype=torch.float64), "config.groups": groups}


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


def _mechanism(build: Callable[[dict[str, Any]], nn.Module]) -> Callable[[ReferenceFile], Computed]:
    return lambda file: _layer(file, build(file.config))[1]


def _relpos(c: dict[str, Any]) -> nn.Module:
    return mechanisms.RelPosAttention(c["dim"], c["num_heads"], (c["H"], c["W"]), c.get("qkv_bias", True))


def _window(c: dict[str, Any]) -> nn.Module:
    shift, rel = c.get("shift_size", 0), c.get("use_rel_pos", False)
    return mechanisms.WindowAttention(c["dim"], c["num_heads"], c["window_size"], shift, rel, c.get("qkv_bias", True))


def _cross_window(c: dict[str, Any]) -> nn.Module:
    return mechanisms.CrossWindowAttention(c["dim"], c["num_heads"], c["split_size"], c.get("qkv_bias", True))


def _xca(c: dict[str, Any]) -> nn.Module:
    return mechanisms.CrossCovarianceAttention(c["dim"], c["num_heads"], c.get("qkv_bias", True))


def _tolerance(file: ReferenceFile, key: str) -> float | Tolerance:
    if not key.startswith("grad."):
        return 1e-5
    relative, largest = 2e-4 if file.kind == "litv2_train" else 1e-4, file.largest("grad.")
    if file.kind in ("dtm_train", "litv2_train") and key.endswith("dconv.bias"):
        # BatchNorm takes the mean away, so this gradient is 0; the file holds the rounding of float32.
        return Tolerance(relative, floor=0.1 * largest)
    # A softmax over one key is constant: where the whole map is one window, l_q has a gradient of 0 but for rounding.
    return Tolerance(relative, floor=1e-3 * largest)


LAYER = ("dim", "H", "W", "num_heads", "qkv_bias", "source")


def _kind(
    compute: Callable[[ReferenceFile], Computed], options: tuple[str, ...], *results: str, x: str = "in.x"
) -> Kind:
    return Kind(
        lambda file: compute(_in_float64(file)),
        _tolerance,
        results=results,
        options=(*options, "source"),
        requires=(x,),
    )


_WINDOW = _kind(_mechanism(_window), (*LAYER, "window_size", "shift_size", "use_rel_pos"))
_MERGE = ("dim", "H", "W", "kernel_size", "stride", "padding", "mode", "train")
_BACKBONE = _kind(_backbone, (*NETWORK, "task", "out_indices", "out_norms", "sizes"), x="in.image_*")

KINDS: dict[str, Kind] = {
    "hilo": _kind(
        _hilo, (*LAYER, "qk_scale", "window_size", "alpha", "padded"),
        "l_heads", "h_heads", "l_dim", "h_dim", "flops_N", "flops_HW",
    ),
    "conv_ffn": _kind(_conv_ffn, ("dim", "hidden", "H", "W", "act", "order")),
    "block_convffn": _kind(_block, (*LAYER, "mlp_ratio"), "flops"),
    "block_hilo": _kind(_block, (*LAYER, "mlp_ratio", "window_size", "alpha", "qk_scale"), "flops"),
    "dtm_eval": _kind(_merging, _MERGE, "max_abs_offset"),
    "dtm_train": _kind(_merging, _MERGE, "max_abs_offset"),
    "dtm_offset_trace": _kind(_offset_trace, ("base_grid", "image", "targets", "plot_area"), x="in.offset_level0"),
    "patch_embed_padded": _kind(_patch_embed, ("patch_size", "embed_dim"), x="in.image"),
    "litv2": _kind(_litv2, (*NETWORK, "img_sizes"), "official_flops", x="in.image_*"),
    "litv2_train": _kind(_litv2_train, (*NETWORK, "img_size", "loss"), x="in.target"),
    "litv1": _kind(_litv1, (*NETWORK, "img_size"), "official_flops", x="in.image"),
    "backbone_seg": _BACKBONE,
    "backbone_det": _BACKBONE,
    "macs": _kind(_macs, ("models",), x="config.models"),
    "optim_schedule": _kind(
        _optim_schedule,
        ("base_lr_config", "world_size", "batch_per_gpu", "epochs", "warmup_epochs", "iters_per_epoch",
         "offset_lr_multi",
         "timm"),
        "groups", x="out.lr",
    ),
    "frequency_magnitude": _kind(_frequency, ("H", "W")),
    "attn_msa": _kind(_mechanism(lambda c: mechanisms.MSA(c["dim"], c["num_heads"], c.get("qkv_bias", True))), LAYER),
    "attn_relpos": _kind(_mechanism(_relpos), LAYER),
    "cmp_sra": _kind(
        _mechanism(
            lambda c: mechanisms.SpatialReductionAttention(
                c["dim"], c["num_heads"], c["sr_ratio"], c.get("qkv_bias", True)
            )
        ),
        (*LAYER, "sr_ratio"),
    ),
    "cmp_window": _WINDOW,
    "cmp_shifted_window": _WINDOW,
    "cmp_cross_window": _kind(
        _mechanism(_cross_window),
        (*LAYER, "split_size"),
    ),
    "cmp_xca": _kind(
        _mechanism(_xca), LAYER
    ),
    "cmp_linformer": _kind(
        _mechanism(
            lambda c: mechanisms.Linformer(
                c["dim"], c["num_heads"], c["seq_len"], c["lin_feat"], c.get("qkv_bias", True)
            )
        ),
        (*LAYER, "lin_feat", "seq_len"),
    ),
    "cmp_van": _kind(_mechanism(lambda c: mechanisms.LargeKernelAttention(c["dim"])), LAYER),
    "cmp_gnconv": _kind(
        _mechanism(lambda c: mechanisms.GatedConvolution(c["dim"], c["order"], c["s"])), (*LAYER, "order", "s")
    ),
}  # fmt: skip
