"""Reference files of the transformer decoder and its parts, recomputed.

In float64 from the file's float32 numbers, through the forward passes that users call: what is left of the difference
is the rounding inside the file.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from faseg.method.attention import reset_full_rows
from faseg.method.decoder import Decoder, LayerTrace
from faseg.method.decoder_layers import CrossAttention, FeedForward, SelfAttention
from faseg.method.dfpq import focus, initial_focus, pooled_cells, position_mlp
from faseg.method.hrca import choose_windows, gather_windows, window_side
from faseg.method.prediction_heads import PredictionHeads, forbidden, resized_features
from faseg.method.semantic_inference import semantic_scores
from faseg.verification.sizes import check_said
from paperkit.errors import UserError
from paperkit.files.keys import load_strict
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import Kind, Tolerance

Computed = dict[str, Any]


def _turned(x: Tensor) -> Tensor:
    """(Q, B, C) of the files to (B, Q, C) of the code, and back."""
    return x.transpose(0, 1)


def _loaded(module: nn.Module, state: Mapping[str, Tensor]) -> Any:
    module.to(next(iter(state.values())).dtype)
    load_strict(module, state, "the state dict")
    return module.eval()


def _parts(file: ReferenceFile, *prefixes: str) -> list[dict[str, Tensor]]:
    """The state dict's parts by prefix; there is nothing else in it but the learned positions."""
    rest = [name for name in file.state if not name.startswith((*prefixes, "query_embed."))]
    if rest:
        raise UserError(f"unknown tensor sd.{rest[0]}; known: {', '.join(f'sd.{prefix}*' for prefix in prefixes)}")
    return [file.part(f"sd.{prefix}") for prefix in prefixes]


def _leaves(file: ReferenceFile) -> dict[str, Tensor]:
    """Inputs, with gradients where they are floats."""
    given = file.inputs  # a dict of its own, which says what is missing
    for name, t in given.items():
        given[name] = t.clone().requires_grad_(t.is_floating_point())
    return given


def _gradients(file: ReferenceFile, loss: Tensor, places: Mapping[str, Tensor]) -> Computed:
    """`grad.NAME` of a loss for what the file names among inputs and parameters."""
    wanted = [name for name in file.gradients if name in places]
    found = torch.autograd.grad(loss, [places[name] for name in wanted], materialize_grads=True) if wanted else ()
    return {f"grad.{name}": value for name, value in zip(wanted, found, strict=True)}


def dfpq(file: ReferenceFile) -> Computed:
    """The first positional query, pooled over masks, and the steps that follow attention."""
    mlp = _loaded(position_mlp(file.config["hidden_dim"]), *_parts(file, "adapt_pos2d."))
    learned = file.state["query_embed.weight"].clone().requires_grad_()
    given = _leaves(file)
    check_said(file, {
        "num_queries": len(learned), "size32": list(given["init.pos"].shape[-2:]), "batch": len(given["init.pos"]),
    })  # fmt: skip
    logits = resized_features(given["init.pred_masks"], given["init.pos"].shape[-2:])
    computed: Computed = {"out.init.pooling_mask": pooled_cells(logits)}
    looked = {"init": initial_focus(logits, _tokens(given["init.pos"]))}
    for name in [name.removesuffix(".attn") for name in given if name.endswith(".attn")]:
        looked[name] = focus(given[f"{name}.attn"], _tokens(given[f"{name}.pos"]))
    for name, place in looked.items():
        computed |= {f"out.{name}.pre_mlp": _turned(place + learned)}
        computed |= {f"out.{name}.query_pos": _turned(mlp(place + learned))}
    if file.gradients:
        loss = (computed["out.step1.query_pos"] * given["cotangent"]).sum()
        parameters = {f"adapt_pos2d.{name}": p for name, p in mlp.named_parameters()}
        computed |= _gradients(file, loss, {**given, **parameters, "query_embed.weight": learned})
    return computed


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C)."""
    return x.flatten(2).transpose(1, 2)


def hrca(file: ReferenceFile) -> Computed:
    """Chosen windows, their tokens, and the cross-attention on them."""
    c, given = file.config, file.inputs
    coarse, fine = tuple(c["size32"]), given["feat4"].shape[-2:]
    cells = choose_windows(given["cg_attn"], c["omega_rate"])
    check_said(file, {
        "window": window_side(coarse, fine), "num_windows": cells.shape[1], "num_queries": len(given["tgt"]),
        "hidden_dim": given["feat4"].shape[1], "batch": len(given["feat4"]),
    })  # fmt: skip
    layer = _loaded(CrossAttention(c["hidden_dim"], c["nheads"]), {
        name: value for name, value in file.state.items() if name != "query_embed.weight"
    })  # fmt: skip
    tokens = gather_windows(given["feat4"], cells, coarse) + given["level_embed3"]
    places = gather_windows(given["pos4"], cells, coarse)
    learned = file.state["query_embed.weight"].expand(len(cells), -1, -1)
    attended = layer(_turned(given["tgt"]), learned, tokens + places, tokens, want_map=True)
    return {
        "out.scores": given["cg_attn"].sum(1),
        "out.indexes": cells,
        "out.tokens": _turned(tokens),
        "out.pos_tokens": _turned(places),
        "out.query_pos": _turned(learned),
        "out.cross_out": _turned(attended.values),
        "out.cross_attn": attended.map,
    }


def decoder_layer(file: ReferenceFile) -> Computed:
    """Masked cross-attention, self-attention and feed-forward; the map as the focus on one-hot positions."""
    c, given = file.config, _leaves(file)
    width, heads = c["hidden_dim"], c["nheads"]
    blocks = CrossAttention(width, heads), SelfAttention(width, heads), FeedForward(width, c["dim_feedforward"])
    cross, own, forward = map(_loaded, blocks, _parts(file, "cross.", "self_.", "ffn."))
    x, query_pos, memory, pos = (_turned(given[name]) for name in ("tgt", "query_pos", "memory", "pos"))
    batch, queries, keys = *x.shape[:2], memory.shape[1]
    check_said(file, {"batch": batch, "num_queries": queries, "tokens": keys})
    one_hot = torch.eye(keys, dtype=x.dtype).expand(batch, -1, -1)
    mask = reset_full_rows(given["mask"].bool())
    attended = cross(x, query_pos, memory + pos, memory, mask, positions=one_hot)
    after = own(attended.values, query_pos)
    output = forward(after)
    computed: Computed = {
        "out.cross": _turned(attended.values), "out.attn": attended.focus,
        "out.self": _turned(after), "out.ffn": _turned(output),
    }  # fmt: skip
    if not file.gradients:
        return computed
    loss = (computed["out.ffn"] * given["cotangent"]).sum() + (attended.focus * given["cotangent_attn"]).sum()
    return {**computed, **_gradients(file, loss, given)}


def prediction_heads(file: ReferenceFile) -> Computed:
    """Classes, masks, and what a level's masks forbid and pool."""
    c, given = file.config, file.inputs
    if c["pool_threshold"] != 0.5:
        raise UserError(f"pool_threshold {c['pool_threshold']}: positions are pooled where masks are below 0.5")
    heads = _loaded(PredictionHeads(c["hidden_dim"], c["mask_dim"], c["num_classes"]), file.state)
    x = _turned(given["output"])
    check_said(file, {
        "batch": len(x), "num_queries": x.shape[1], "mask_size": list(given["mask_features"].shape[-2:]),
    })  # fmt: skip
    prediction = heads.predict(x)
    logits = heads.level_logits(x, resized_features(given["mask_features"], tuple(c["target_size"])))
    return {
        "out.class": prediction.logits,
        "out.mask": prediction.masks(given["mask_features"]),
        "out.attn_mask": forbidden(logits, c["attn_threshold"]),
        "out.pooling_mask": pooled_cells(logits),
    }


def decoder(file: ReferenceFile) -> Computed:
    """The whole decoder: all predictions, and each layer's positions, attention and output."""
    c, given = file.config, _leaves(file)
    if c["pre_norm"]:
        raise UserError("pre_norm true is not computed: the layers of FASeg normalise after their blocks")
    network = _loaded(
        Decoder(
            c["num_classes"], c["hidden_dim"], c["in_channels"], c["mask_dim"], c["num_queries"], c["nheads"],
            c["dim_feedforward"], c["dec_layers"], omega=c["omega_rate"],
            enforce_input_project=c["enforce_input_project"],
        ),
        file.state,
    )  # fmt: skip
    features, positions = ([given[f"{name}.{level}"] for level in range(4)] for name in ("x", "pos"))
    check_said(file, {"batch": len(features[0]), "size32": list(features[0].shape[-2:])})
    trace: list[LayerTrace] = []
    outputs = network(features, positions, given["mask_features"], trace=trace)
    computed: Computed = {f"out.{name}": outputs[name] for name in ("pred_logits", "pred_masks")}
    for i, output in enumerate(outputs["aux_outputs"]):
        computed |= {f"out.aux.{i}.{name}": output[name] for name in ("pred_logits", "pred_masks")}
    for i, layer in enumerate(trace):
        computed |= {
            f"out.layer.{i}.query_pos": _turned(layer.query_pos),
            f"out.layer.{i}.attn": layer.attention,
            f"out.layer.{i}.cross_out": _turned(layer.cross_out),
            f"out.layer.{i}.ffn_out": _turned(layer.output),
        }
        if layer.tokens is not None:
            computed[f"out.layer.{i}.hr_tokens_mean"] = _turned(layer.tokens.mean(-1))
    if not file.gradients:
        return computed
    loss = sum((outputs[name] * given[f"cotangent.{name}"]).sum() for name in ("pred_logits", "pred_masks"))
    return {**computed, **_gradients(file, loss, {**given, **dict(network.named_parameters())})}


def semantic_inference(file: ReferenceFile) -> Computed:
    """Class scores at the picture's size in both orders of resizing, and the label map."""
    c, given = file.config, file.inputs
    logits, masks = given["mask_cls"], given["mask_pred"]
    check_said(file, {
        "num_queries": len(logits), "num_classes": logits.shape[1] - 1, "mask_size": list(masks.shape[-2:]),
    })  # fmt: skip
    padded, image, output = (tuple(c[name]) for name in ("padded_size", "image_size", "output_size"))
    if any(side > whole for side, whole in zip(image, padded, strict=True)):
        raise UserError(f"image_size {list(image)} does not lie in padded_size {list(padded)}")
    after = semantic_scores(logits, masks, padded, image, output)
    before = semantic_scores(logits, masks, padded, image, output, resized="masks")
    return {"out.semseg_post_after": after, "out.semseg_post_before": before, "out.label": after.argmax(0)}


def _in_float64(compute: Callable[[ReferenceFile], Computed]) -> Callable[[ReferenceFile], Computed]:
    def run(file: ReferenceFile) -> Computed:
        wide = {name: t.double() if t.is_floating_point() else t for name, t in file.tensors.items()}
        return compute(dataclasses.replace(file, tensors=wide))

    return run


def _layer(file: ReferenceFile, key: str) -> Tolerance:
    return Tolerance(1e-5, floor=1e-3 * file.largest("grad.") if key.startswith("grad.") else 0.0)


def _whole(file: ReferenceFile, key: str) -> Tolerance:
    return Tolerance(1e-4, floor=1e-3 * file.largest("grad.") if key.startswith("grad.") else 0.0)


_SIZES = ("batch", "num_queries", "hidden_dim", "size32", "seed", "note")
_LIMITS = {"dec_layers": 64, "*": 4096, "*.*": 4096}

KINDS: dict[str, Kind] = {
    "dfpq": Kind(
        _in_float64(dfpq), _layer, options=_SIZES, requires=("in.init.*", "in.step*.attn", "sd.query_embed.weight"),
        limits=_LIMITS,
    ),
    "hrca": Kind(
        _in_float64(hrca), _layer, options=(*_SIZES, "omega_rate", "nheads", "window", "num_windows"),
        requires=("in.cg_attn", "in.feat4", "in.pos4", "in.level_embed3", "in.tgt"), limits=_LIMITS,
    ),
    "decoder_layer": Kind(
        _in_float64(decoder_layer), _layer, options=(*_SIZES, "tokens", "nheads", "dim_feedforward"),
        requires=("in.tgt", "in.memory", "in.pos", "in.query_pos", "in.mask"), limits=_LIMITS,
    ),
    "prediction_heads": Kind(
        _in_float64(prediction_heads), _layer,
        options=(*_SIZES, "num_classes", "mask_dim", "mask_size", "target_size", "attn_threshold", "pool_threshold"),
        requires=("in.output", "in.mask_features"), limits=_LIMITS,
    ),
    "decoder": Kind(
        _in_float64(decoder), _whole,
        options=(*_SIZES, "in_channels", "mask_dim", "num_classes", "nheads", "dim_feedforward", "dec_layers",
                 "omega_rate", "pre_norm", "enforce_input_project"),
        requires=("in.x.0", "in.pos.0", "in.mask_features"), limits=_LIMITS,
    ),
    "semantic_inference": Kind(
        _in_float64(semantic_inference), _layer,
        options=(*_SIZES, "num_classes", "mask_size", "padded_size", "image_size", "output_size"),
        requires=("in.mask_cls", "in.mask_pred"), limits=_LIMITS,
    ),
}  # fmt: skip
