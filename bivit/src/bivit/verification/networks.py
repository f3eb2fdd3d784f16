"""Reference files of whole networks, recomputed: one step without the optimiser."""

from functools import partial
from typing import Any

from timm.models.nest import Nest
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from bivit.method.distillation import distribution_loss
from bivit.models.binarize import BinaryConfig, binarize
from bivit.verification.layers import Computed, gradients, named
from paperkit.files.keys import load_strict
from paperkit.verification.reference_file import ReferenceFile

_ATTENTION = {
    "BiAttention_SAB": {"attention": "sab", "attention_linear": "pws"},
    "BiAttention_baseline": {"attention": "bool", "attention_linear": "mean"},
    "fp": {"attention": "float"},
}
_MLP = {
    "BiMlp": {"mlp": "w1a1", "mlp_linear": "mean"},
    "BiMlp_1w32a": {"mlp": "w1a32", "mlp_linear": "mean"},
    "BiMlp_adapscaling": {"mlp": "w1a1", "mlp_linear": "pws"},
    "BiMlp_adapscaling_1w32a": {"mlp": "w1a32", "mlp_linear": "pws"},
    "fp": {"mlp": "float"},
}


def _run(file: ReferenceFile, model: nn.Module) -> Computed:
    binarize(model, BinaryConfig(**named(file.config, "attention", _ATTENTION), **named(file.config, "mlp", _MLP)))
    load_strict(model, file.state, "the state dict")
    x = file.inputs["x"].clone().requires_grad_()
    logits = model.to(x.dtype).eval()(x)
    computed: Computed = {"out.logits": logits}
    if "teacher_logits" in file.inputs:
        loss = distribution_loss(logits, file.inputs["teacher_logits"])
        computed |= {"out.loss": loss.reshape(1), **gradients(file, loss, {"x": x}, model)}
    return computed


def _common(config: dict[str, Any]) -> dict[str, Any]:
    return dict(
        img_size=config["img"], patch_size=config["patch"], mlp_ratio=config["mlp_ratio"],
        num_classes=config["classes"], norm_layer=partial(nn.LayerNorm, eps=config["norm_eps"]),
    )  # fmt: skip


def deit(file: ReferenceFile) -> Computed:
    """A vision transformer with a class token."""
    c = file.config
    return _run(file, VisionTransformer(embed_dim=c["dim"], depth=c["depth"], num_heads=c["heads"], **_common(c)))


def swin(file: ReferenceFile) -> Computed:
    """A Swin transformer."""
    c = file.config
    options = dict(embed_dim=c["dim"], depths=tuple(c["depths"]), num_heads=tuple(c["heads"]), window_size=c["window"])
    return _run(file, SwinTransformer(drop_path_rate=0.0, **options, **_common(c)))


def nest(file: ReferenceFile) -> Computed:
    """A nested transformer."""
    c = file.config
    options: dict[str, Any] = dict(embed_dims=tuple(c["dims"]), depths=tuple(c["depths"]), num_heads=tuple(c["heads"]))
    return _run(file, Nest(num_levels=len(c["dims"]), drop_path_rate=0.0, **options, **_common(c)))
