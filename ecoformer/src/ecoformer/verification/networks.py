"""Reference files of whole networks, recomputed."""

from typing import Any

from ecoformer.models.classifier import PyramidClassifier
from ecoformer.models.pvt import PVTv2
from ecoformer.models.released import fit_released
from ecoformer.models.twins import Twins
from ecoformer.verification.method import Computed, gradients
from paperkit.files.keys import load_strict
from paperkit.verification.reference_file import ReferenceFile


def _run(file: ReferenceFile, model: PyramidClassifier) -> Computed:
    state = fit_released(file.state, model)
    for key in state:
        if key.endswith(".fitted"):
            state[key] = state[key] | True  # random supports of a reference file are a fit, zeros too
    load_strict(model, state, "the state dict")
    model.to(file.inputs["x"].dtype).eval()
    x = file.inputs["x"].clone().requires_grad_()
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    out = model.head(features)
    return {"out.y": out, "out.features": features, **gradients(file, out, {"x": x}, model)}


def _common(config: dict[str, Any]) -> dict[str, Any]:
    names = {"dims": "embed_dims", "heads": "num_heads", "depths": "depths", "sr_ratios": "sr_ratios", "nbits": "nbits"}
    names |= {"m": "supports", "norm_eps": "norm_eps", "classes": "num_classes", "qkv_bias": "qkv_bias"}
    return {ours: config[key] for key, ours in names.items() if key in config}


def pvtv2(file: ReferenceFile) -> Computed:
    """A whole PVTv2, forward and backward."""
    c = file.config
    return _run(file, PVTv2(mlp_ratios=c["mlp"], attn_type=c["attn_type"], **_common(c)))


def twins(file: ReferenceFile) -> Computed:
    """A whole Twins-SVT, forward and backward."""
    c = file.config
    options = {"mlp_ratios": c["mlp_ratios"], "patch_size": c.get("patch_size", 4), "windows": c["wss"]}
    return _run(file, Twins(block=c["block"], **options, **_common(c)))
