"""Reference files of the method's parts, recomputed: quantisers, scores, linears, attention, MLP, loss."""

from typing import Any

import torch
from torch import Tensor, nn

from bivit.method.attention import BinaryAttention
from bivit.method.attention_rules import BoolScores, bool_scores, onehot_scores, scaled_bool_scores
from bivit.method.binary_linear import RELEASED, BinaryLinear
from bivit.method.distillation import distribution_loss
from bivit.method.elastic import FLOOR, Elastic
from bivit.method.mlp import RELEASED_MLPS, BinaryMlp
from bivit.method.sign import sign
from bivit.method.softmax_aware import (
    SoftmaxAware,
    best_scale,
    binarize_scores,
    fitted_beta,
    optimal_binary,
    squared_error,
    threshold,
)
from paperkit.errors import UserError
from paperkit.files.keys import load_strict
from paperkit.verification.reference_file import ReferenceFile

Computed = dict[str, Any]


def named(config: dict[str, Any], option: str, known: dict[str, Any]) -> Any:
    """The entry of `known` that an option names.

    Raises:
        UserError: it names none.
    """
    if not isinstance(config[option], str) or config[option] not in known:
        raise UserError(f"{option} {config[option]!r} does not exist; known: {', '.join(known)}")
    return known[config[option]]


def gradients(file: ReferenceFile, loss: Tensor, inputs: dict[str, Tensor], model: nn.Module | None = None) -> Computed:
    """`grad.*` of a loss, for the inputs and parameters that the file names."""
    places = {**inputs, **({} if model is None else dict(model.named_parameters()))}
    wanted = [name for name in file.gradients if name in places]
    if not wanted:
        return {}
    found = torch.autograd.grad(loss, [places[name] for name in wanted], materialize_grads=True)
    return {f"grad.{name}": value for name, value in zip(wanted, found, strict=True)}


def of_cotangent(
    file: ReferenceFile, out: Tensor, inputs: dict[str, Tensor], model: nn.Module | None = None
) -> Computed:
    """`grad.*` of sum(out * cotangent)."""
    return gradients(file, (out * file.inputs["cotangent"]).sum(), inputs, model) if file.gradients else {}


def quantizer(file: ReferenceFile) -> Computed:
    """A released quantiser by itself."""
    known = {"sign": sign, "bool": bool_scores, "bool_scaled": scaled_bool_scores, "onehot": onehot_scores}
    x = file.inputs["x"].clone().requires_grad_()
    y = named(file.config, "quantizer", known)(x)
    return {"out.y": y, **of_cotangent(file, y, {"x": x})}


def elastic(file: ReferenceFile) -> Computed:
    """BiT's quantiser, its alpha given or of the first batch."""
    c = file.config
    if c.get("bits", 1) != 1:
        raise UserError(f"bits is {c['bits']}; only 1 bit is built")
    if c["alpha_init"] not in ("first batch", "given"):
        raise UserError(f"alpha_init {c['alpha_init']!r} does not exist; known: first batch, given")
    x = file.inputs["x"].clone().requires_grad_()
    layer = Elastic(bool(c["signed"])).to(x.dtype)
    ready = torch.tensor(c["alpha_init"] == "given")
    load_strict(layer, {"alpha": file.inputs["alpha"].reshape(1), "ready": ready}, "in.alpha")
    y = layer(x)
    return {
        "out.y": y,
        "out.alpha": layer.alpha.clamp(min=FLOOR),
        **of_cotangent(file, y, {"x": x, "alpha": layer.alpha}),
    }


def sab(file: ReferenceFile) -> Computed:
    """Softmax-aware binarization of logits, both backward forms."""
    c, logits = file.config, file.inputs["logits"].clone().requires_grad_()
    binary = SoftmaxAware(c["beta"], c["backward"])(logits)
    scores = logits.softmax(-1)
    return {
        "out.softmax": scores,
        "out.threshold": threshold(scores, c["beta"]),
        "out.binary": binary,
        **of_cotangent(file, binary, {"logits": logits}),
    }


def sab_optimal(file: ReferenceFile) -> Computed:
    """Algorithm 1, and the threshold at a share of the maximum beside it."""
    c, scores = file.config, file.inputs["softmax"]
    best = optimal_binary(scores, c["iterations"])
    approx = binarize_scores(scores, c["beta"])
    return {
        "out.v": best.scales,
        "out.threshold": best.threshold,
        "out.binary": best.binary,
        "out.error": best.error,
        "out.beta": torch.tensor([fitted_beta(scores, c["iterations"])], dtype=torch.float64),
        "out.binary_approx": approx,
        "out.error_approx": squared_error(scores, approx, best_scale(scores, approx)),
        "out.error_unscaled": squared_error(scores, approx),
    }


def binary_linear(file: ReferenceFile) -> Computed:
    """One binary linear, forward and backward."""
    c, x = file.config, file.inputs["x"].clone().requires_grad_()
    rule = named(c, "class", RELEASED)
    layer = BinaryLinear(c["in_features"], c["out_features"], rule).to(x.dtype)
    load_strict(layer, file.state, "the state dict")
    y = layer(x)
    computed = {"out.y": y, **of_cotangent(file, y, {"x": x}, layer)}
    if rule.weights == "sign":
        computed |= {"out.weight_sign": layer.centred_weight().sign(), "out.scale": layer.scale()}
    return computed


_ATTENTION = {
    "BiAttention_SAB": ("BinaryLinear_adapscaling", SoftmaxAware),
    "BiAttention_baseline": ("BinaryLinear_STE", BoolScores),
}


def binary_attention(file: ReferenceFile) -> Computed:
    """One attention module, with what it computes on the way."""
    c, x = file.config, file.inputs["x"].clone().requires_grad_()
    linear, scores = named(c, "class", _ATTENTION)
    layer = BinaryAttention(c["dim"], c["num_heads"], RELEASED[linear], scores()).to(x.dtype)
    load_strict(layer, file.state, "the state dict")
    seen: dict[str, Tensor] = {}
    layer.qkv.register_forward_hook(lambda module, args, out: seen.update(qkv=out))
    layer.scores.register_forward_hook(lambda module, args, out: seen.update(logits=args[0], attn=out))
    layer.proj.register_forward_hook(lambda module, args, out: seen.update(context=args[0]))
    y = layer(x)
    qkv = torch.stack([layer.heads(part) for part in seen["qkv"].chunk(3, -1)])
    seen["qkv"] = qkv
    return {
        "out.y": y,
        **{f"out.{key}": value for key, value in seen.items()},
        **of_cotangent(file, y, {"x": x}, layer),
    }


def binary_mlp(file: ReferenceFile) -> Computed:
    """One MLP, forward and backward."""
    c, x = file.config, file.inputs["x"].clone().requires_grad_()
    layer = BinaryMlp(c["dim"], c["hidden"], named(c, "class", RELEASED_MLPS)).to(x.dtype)
    load_strict(layer, file.state, "the state dict")
    y = layer(x)
    return {"out.y": y, **of_cotangent(file, y, {"x": x}, layer)}


def distillation(file: ReferenceFile) -> Computed:
    """The distribution loss."""
    student = file.inputs["student_logits"].clone().requires_grad_()
    loss = distribution_loss(student, file.inputs["teacher_logits"])
    return {"out.loss": loss.reshape(1), **gradients(file, loss, {"student_logits": student})}
