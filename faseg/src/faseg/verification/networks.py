"""Reference files of the pixel decoder, of whole networks and of the released checkpoints' names.

Everything is recomputed in float64 from the file's float32 weights and inputs, through the forward passes that users
call: what is left of the difference is the rounding inside the file.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from faseg.method.deformable_attention import DeformableAttention
from faseg.method.pixel_decoder import PixelDecoder
from faseg.models.faseg import DIVISOR, MEAN, STD, FASeg, build, padded_batch
from faseg.verification.sizes import check_said
from paperkit.errors import UserError
from paperkit.files.weights import load_strict
from paperkit.verification.verify import Check, Kind, ReferenceFile, Tolerance, check_options

Computed = Mapping[str, Any]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def _load(module: ModuleT, file: ReferenceFile) -> ModuleT:
    load_strict(module.double(), file.state, "the file's sd.*")
    return module.eval()


def _expect(config: Mapping[str, Any], **known: Any) -> None:
    for key, value in known.items():
        if config.get(key, value) != value:
            raise UserError(f"option {key} is {config[key]!r}; known: {value!r}")


def _gradients(
    file: ReferenceFile, module: nn.Module, inputs: Mapping[str, Tensor], sums: list[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """The file's gradients: of the sum over (output, cotangent), with respect to inputs and parameters by name."""
    leaves = {**inputs, **dict(module.named_parameters())}
    wanted = [name for name in file.gradients if name in leaves]
    outputs, cotangents = zip(*sums, strict=True)
    found = torch.autograd.grad(outputs, [leaves[name] for name in wanted], [c.double() for c in cotangents])
    return {f"grad.{name}": gradient for name, gradient in zip(wanted, found, strict=True)}


def recompute_deformable_attention(file: ReferenceFile) -> Computed:
    """One deformable attention module; output and gradients."""
    c = file.config
    attention = _load(DeformableAttention(c["d_model"], c["n_heads"], c["n_levels"], c["n_points"]), file)
    query, value = (file.inputs[name].double().requires_grad_() for name in ("query", "value"))
    shapes = [(height, width) for height, width in file.inputs["spatial_shapes"].tolist()]
    check_said(file, {"batch": len(query)})
    y = attention(query, value, file.inputs["reference_points"].double(), shapes)
    computed = {"out.output": y}
    if file.gradients:
        inputs = {"query": query, "value": value}
        computed |= _gradients(file, attention, inputs, [(y, file.inputs["cotangent"])])
    return computed


def recompute_pixel_decoder(file: ReferenceFile) -> Computed:
    """The pixel decoder: mask features, maps, positions, gradients."""
    c = file.config
    _expect(c, norm="GN")
    decoder = PixelDecoder(
        c["channels"],
        c["conv_dim"],
        c["mask_dim"],
        layers=c["enc_layers"],
        dim_feedforward=c["dim_feedforward"],
        nheads=c["nheads"],
        points=c["n_points"],
    )
    inputs = {f"res{i}": file.inputs[f"res{i}"].double().requires_grad_() for i in range(2, 6)}
    height, width = inputs["res5"].shape[2:]
    check_said(file, {"batch": len(inputs["res5"]), "image": [DIVISOR * height, DIVISOR * width]})
    found = _load(decoder, file)([*inputs.values()])
    computed = {"out.mask_features": found.mask_features}
    computed |= {f"out.multi_scale.{level}": x for level, x in enumerate(found.features)}
    computed |= {f"out.pos.{level}": x for level, x in enumerate(found.positions)}
    cotangents = file.part("in.cotangent.")
    if file.gradients:
        computed |= _gradients(file, decoder, inputs, [(computed[f"out.{name}"], c) for name, c in cotangents.items()])
    return computed


def tiny_network(c: Mapping[str, Any]) -> FASeg:
    """The narrow network that a `model` file's options describe."""
    b = c["backbone"]
    _expect(c, hidden_dim=c["conv_dim"])
    if c["kind"] == "r50":
        check_options(b, ("depth", "blocks", "stem_out", "res2_out", "bottleneck", "stride_in_1x1", "norm"), "backbone")
        _expect(b, depth=50, stride_in_1x1=False)
        backbone = dict(
            kind="resnet",
            blocks=b["blocks"],
            stem=b["stem_out"],
            width=b["bottleneck"],
            outputs=b["res2_out"],
            norm=b["norm"],
        )
    elif c["kind"] == "swin":
        known = ("dim", "depths", "heads", "window", "mlp_ratio", "patch", "patch_norm", "qkv_bias")
        check_options(b, known, "backbone")
        _expect(b, patch_norm=True, qkv_bias=True)
        if not len(b["depths"]) == len(b["heads"]) == 4:
            raise UserError(f"backbone has depths {b['depths']} and heads {b['heads']}; there are four stages")
        backbone = dict(kind="swin", **{key: b[key] for key in ("dim", "depths", "heads", "window")})
        backbone |= dict(mlp_ratio=b["mlp_ratio"], patch=b["patch"])
    else:
        raise UserError(f"option kind is {c['kind']!r}; known: r50, swin")
    return FASeg(
        backbone,
        c["num_classes"],
        c["conv_dim"],
        c["mask_dim"],
        pixel_decoder=dict(
            layers=c["pixel_encoder_layers"], dim_feedforward=c["pixel_encoder_ffn"], nheads=c["nheads"]
        ),
        decoder=dict(
            num_queries=c["num_queries"],
            nheads=c["nheads"],
            dim_feedforward=c["dim_feedforward"],
            layers=c["decoder_layers"],
            omega=c["omega_rate"],
        ),
    )


def recompute_model(file: ReferenceFile) -> Computed:
    """A whole network: backbone maps, predictions, and scores at the output sizes from uint8 pictures."""
    c = file.config
    _expect(c, size_divisibility=DIVISOR, pixel_mean=list(MEAN), pixel_std=list(STD), format="RGB")
    given = file.inputs
    images = [given[f"image.{i}"] for i in range(sum(name.startswith("image.") for name in given))]
    check_said(file, {"image_sizes": [list(image.shape[1:]) for image in images]})
    if len(c["output_sizes"]) != len(images):
        raise UserError(f"config.output_sizes has {len(c['output_sizes'])} sizes for {len(images)} pictures")
    model = _load(tiny_network(c), file)
    with torch.no_grad():
        batch = padded_batch(images).double()
        maps = model.backbone(batch)
        outputs = model(batch, masks="last")
        scores = model.segment(images, [(height, width) for height, width in c["output_sizes"]])
    computed: dict[str, Any] = {f"out.{name}": outputs[name] for name in ("pred_logits", "pred_masks")}
    computed |= {f"out.backbone.res{i}": x for i, x in enumerate(maps, 2)}
    return computed | {f"out.sem_seg.{i}": x for i, x in enumerate(scores)}


def recompute_names(file: ReferenceFile) -> Computed:
    """Names and shapes of a released network's state dict; the file's name names the release."""
    shapes = {key: list(value.shape) for key, value in build(_release(file), "meta").state_dict().items()}
    strangers = sorted(shapes.keys() - file.config.keys())
    only_here = Check(len(strangers), 0, ", ".join(strangers[:3]))
    return {**{f"config.{key}": shape for key, shape in shapes.items()}, "keys that the file lacks": only_here}


def _release(file: ReferenceFile) -> str:
    return file.path.stem.removeprefix("state_dict_keys_")


def _tolerance(relative: float) -> Any:
    def of(file: ReferenceFile, key: str) -> Tolerance:
        if key.startswith("grad."):
            return Tolerance(1e-4, floor=1e-3 * file.largest("grad."))
        return Tolerance(relative, absolute=relative)

    return of


BACKBONE_LIMITS = {"backbone.depths.*": 100, "backbone.blocks.*": 100}
KINDS = {
    "msdeform_attn": Kind(
        recompute_deformable_attention,
        _tolerance(1e-5),
        options=("batch", "d_model", "n_heads", "n_points", "n_levels", "seed"),
        requires=("in.query", "in.value", "in.reference_points", "in.spatial_shapes"),
    ),
    "pixel_decoder": Kind(
        recompute_pixel_decoder,
        _tolerance(1e-5),
        options=(
            *("batch", "image", "channels", "conv_dim", "mask_dim", "enc_layers", "nheads", "n_points"),
            *("dim_feedforward", "norm", "seed"),
        ),
        requires=("in.res2", "in.res3", "in.res4", "in.res5"),
        limits={"enc_layers": 100},
    ),
    "model": Kind(
        recompute_model,
        _tolerance(1e-4),
        options=(
            *("kind", "num_classes", "conv_dim", "mask_dim", "hidden_dim", "num_queries", "nheads"),
            *("dim_feedforward", "decoder_layers", "pixel_encoder_layers", "pixel_encoder_ffn", "omega_rate"),
            *("size_divisibility", "image_sizes", "output_sizes", "pixel_mean", "pixel_std", "format", "seed"),
            "backbone",
        ),
        requires=("in.image.*", "sd.*"),
        limits={**BACKBONE_LIMITS, "decoder_layers": 100, "pixel_encoder_layers": 100},
    ),
    "state_dict_keys": Kind(recompute_names, 0.0, results=("*",)),
}
