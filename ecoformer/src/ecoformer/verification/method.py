"""Reference files of the method's parts, recomputed: labels, hash, fit, attention, energy, data generators."""

import dataclasses
import functools
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.method.attention import EcoFormerAttention
from ecoformer.method.energy import Ledger, ecoformer_operations, ledger
from ecoformer.method.hash_fit import FitOptions, fit_hash
from ecoformer.method.kernel_hash import KernelHash
from ecoformer.method.linear_attention import linear_attention
from ecoformer.method.performer import PerformerAttention
from ecoformer.method.similarity import labels_from_dense, pair_labels
from ecoformer.models.architectures import architecture, build
from ecoformer.models.conversion import msa_to_ecoformer, sra_to_msa
from ecoformer.training.listops import ListOpsOptions, parse, source_of, tokens_of, trees, value_of
from paperkit.errors import UserError
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import Check, check_options

Computed = dict[str, Any]


def gradients(file: ReferenceFile, out: Tensor, inputs: dict[str, Tensor], model: nn.Module | None = None) -> Computed:
    """`grad.*` of sum(out * cotangent), for the inputs and parameters that the file names."""
    if not file.gradients:
        return {}
    named = {**inputs, **({} if model is None else dict(model.named_parameters()))}
    wanted = [name for name in file.gradients if name in named]
    found = torch.autograd.grad((out * file.inputs["cotangent"]).sum(), [named[name] for name in wanted])
    return {f"grad.{name}": value for name, value in zip(wanted, found, strict=True)}


def difference(found: Tensor, wanted: Tensor) -> float:
    """Largest absolute difference; infinite between different shapes."""
    return (found - wanted).abs().max().item() if found.shape == wanted.shape else float("inf")


def similarity_labels(file: ReferenceFile) -> Computed:
    """Cosine similarities and pair labels."""
    u = file.inputs["qk"]
    return {"out.similarity": u @ u.mT, "out.labels": pair_labels(u, file.config["topk"]).dense()}


def hash_forward(file: ReferenceFile) -> Computed:
    """Every step of the hash and its gradient."""
    c, x = file.config, file.inputs["x"].clone().requires_grad_()
    layer = KernelHash(c["heads"], c["head_dim"], c["nbits"], c["m"]).to(x.dtype)
    layer.load_state_dict(file.state)
    steps = layer.steps(x)
    return {
        "out.sq_dist": steps.sq_dist,
        "out.sigma": steps.sigma,
        "out.kernel_centred": steps.kernel,
        "out.pre_sign": steps.pre,
        "out.codes": steps.codes,
        **gradients(file, steps.codes, {"x": x}),
    }


def fit_options(config: dict[str, Any]) -> FitOptions:
    """The released fit with a file's settings."""
    named = {"learning_rate": "lr", "momentum": "momentum", "nesterov": "nesterov", "iterations": "iterations"}
    return FitOptions(topk=config["topk"], **{ours: config[key] for key, ours in named.items() if key in config})


def fitted_tolerance(file: ReferenceFile) -> float:
    """Of A: 1e-6, and 2e-5 of its largest entry from a learning rate of 0.01 on."""
    if file.config["learning_rate"] < 0.01:
        return 1e-6
    return 2e-5 * file.largest("sd_after.")


def fit_precision(file: ReferenceFile) -> torch.dtype:
    """Small steps in float32, as the reference took them: each is a few units in the last place of A, so that their
    roundings add up to 1e-5. Large steps in float64: there differences of the gradient grow instead."""
    return torch.float32 if file.config["learning_rate"] < 0.01 else torch.float64


def hash_fit(file: ReferenceFile) -> Computed:
    """The greedy fit from the file's projection, supports and labels."""
    c, x = file.config, file.inputs["x"]
    before, after = file.part("sd_before."), file.part("sd_after.")
    options, given = fit_options(c), labels_from_dense(file.inputs["labels"])
    own = pair_labels(x, c["topk"]).dense()
    u, A, supports = (t.to(fit_precision(file)) for t in (x, before["A"], file.inputs["anchor"]))
    fit = fit_hash(u, A, options, anchor=supports, labels=given)
    layer = KernelHash(c["heads"], c["head_dim"], c["nbits"], c["m"]).to(x.dtype)
    layer.set_fit(fit.A, fit.mvec, fit.anchor)
    steps = layer.steps(x)
    kept = (fit.loss_after < fit.loss_before) != (file.outputs["loss_after"] < file.outputs["loss_before"])
    drawn = x[0][:, file.inputs["perm"][: c["m"]]][None]
    return {
        "out.sigma": steps.sigma,
        "out.kernel_centred": steps.kernel,
        **{
            f"out.{name}": getattr(fit, name)
            for name in ("loss_before", "loss_after", "surrogate_first", "surrogate_last")
        },
        "out.train_codes": fit.codes,
        "out.residual": c["nbits"] * given.dense() - fit.codes @ fit.codes.mT,
        "out.codes": steps.codes,
        "sd_after.A": Check(difference(fit.A, after["A"]), fitted_tolerance(file)),
        "sd_after.mvec": Check(difference(fit.mvec, after["mvec"]), 1e-6),
        "sd_after.anchor": Check(difference(fit.anchor, after["anchor"]), 0.0),
        "in.labels": Check(difference(own, file.inputs["labels"]), 0.0, "labels of the given tokens"),
        "in.anchor": Check(difference(drawn, file.inputs["anchor"]), 0.0, "tokens of the first sample"),
        "accepted bits": Check(float(kept.sum()), 0.0, "bits accepted otherwise"),
    }


def binary_attention(file: ReferenceFile) -> Computed:
    """The released form where the file has gradients, else the global one."""
    q, k, v = (file.inputs[name].clone().requires_grad_() for name in ("q", "k", "v"))
    mode = "released" if file.gradients or "cotangent" in file.inputs else "global"
    out = linear_attention(q, k, v, float(file.config["bias"]), mode)
    return {"out.y": out, **gradients(file, out, {"q": q, "k": k, "v": v})}


def _eco_layer(file: ReferenceFile, prefix: str) -> EcoFormerAttention:
    c, state = file.config, file.part(prefix)
    options = fit_options(c) if "topk" in c else FitOptions()
    bias = c.get("qkv_bias", "to_qk.bias" in state)
    layer = EcoFormerAttention(c["dim"], c["num_heads"], c["nbits"], c["m"], bias, fit=options)
    layer.load_state_dict({key: value for key, value in state.items() if not key.endswith("projection_matrix")})
    return layer.to(file.inputs["x"].dtype)


def eco_attention(file: ReferenceFile) -> Computed:
    """A fitted layer, forward and backward."""
    if not file.config.get("is_trained", True):
        raise UserError("is_trained is false: the kind of an unfitted layer is eco_attention_first_call")
    layer, x = _eco_layer(file, "sd."), file.inputs["x"].clone().requires_grad_()
    layer.ksh.mark_fitted(True)
    out = layer(x)
    return {"out.y": out, **gradients(file, out, {"x": x}, layer)}


def eco_attention_first_call(file: ReferenceFile) -> Computed:
    """A layer that fits itself on what it is given first."""
    layer = _eco_layer(file, "sd_before.")
    layer.ksh.mark_fitted(False)
    x = file.inputs["x"]
    layer.to(fit_precision(file))(x.to(fit_precision(file)), perm=file.inputs["perm"])
    checks: Computed = {"out.y": layer.to(x.dtype)(x)}
    state = layer.state_dict()
    for key, value in file.part("sd_after.").items():
        if not key.endswith("projection_matrix"):
            tolerance = fitted_tolerance(file) if key.endswith("ksh.A") else 1e-6
            checks[f"sd_after.{key}"] = Check(difference(state[key], value), tolerance)
    return checks


def performer_attention(file: ReferenceFile) -> Computed:
    """FAVOR+ with the stored features."""
    c, x = file.config, file.inputs["x"].clone().requires_grad_()
    bias = "qkv.bias" in file.state
    layer = PerformerAttention(c["dim"], c["num_heads"], bias, features=c["nb_features"]).to(x.dtype)
    layer.load_state_dict(file.state)
    out = layer(x)
    return {"out.y": out, **gradients(file, out, {"x": x}, layer)}


def weight_conversion(file: ReferenceFile) -> Computed:
    """Both conversions, exact, keys included."""
    msa = sra_to_msa(file.part("sd_sra."))
    found = {"msa": msa, "ecoformer": msa_to_ecoformer(msa)}
    computed: Computed = {}
    for name, state in found.items():
        computed.update({f"out.{name}.{key}": value for key, value in state.items()})
        odd = sorted(state.keys() ^ file.part(f"out.{name}.").keys())
        computed[f"keys of {name}"] = Check(float(len(odd)), 0.0, ", ".join(odd[:3]))
    return computed


@functools.cache
def _counted(stem: str) -> Ledger:
    """Counts of one of our own networks, on the meta device."""
    return ledger(lambda: build(stem))


def energy_table(file: ReferenceFile) -> Computed:
    """Every row that the file has. Other lengths of the codes change the attention's terms alone."""
    check_options(file.config, ("meta", "models"))
    computed: Computed = {}
    for name, row in file.config["models"].items():
        options, stem = architecture(name), name.partition("_nbits")[0]
        check_options(row, ("params", "layer_flops", "mul", "add", "energy_pj", "area"), f"config.models.{name}")
        book = _counted(stem)
        if "nbits" in options:
            of = [
                dataclasses.replace(
                    layer, operations=ecoformer_operations(layer.tokens, layer.dim, layer.heads, options["nbits"])
                )
                if layer.kind == "ecoformer"
                else layer
                for layer in book.layers
            ]
            book = dataclasses.replace(book, layers=of)
        counts = book.as_dict()
        for key, value in row.items():
            found: Any = counts[key]
            if key in ("energy_pj", "area"):
                found = Check(abs(found - value) / max(abs(value), 1e-300), 1e-12, f"{found}")
            computed[f"config.models.{name}.{key}"] = found
    return computed


LISTOPS = ("seed", "max_depth", "max_args", "min_length_exclusive", "max_length_exclusive")


def listops(file: ReferenceFile) -> Computed:
    """The generator in the documented order of draws; and each listed example parsed and evaluated."""
    computed: Computed = {}
    for name, c in file.config.items():
        check_options(c, (*LISTOPS, "trees_tried", "first_30_lengths_tried", "examples"), f"config.{name}")
        for key in LISTOPS:
            if key not in c:
                raise UserError(f"missing option {name}.{key}")
        options = ListOpsOptions(c["max_depth"], c["max_args"], c["min_length_exclusive"], c["max_length_exclusive"])
        listed = c.get("examples", [])
        kept: list[dict[str, Any]] = []
        seen: set[str] = set()
        tried, lengths = 0, list[int]()
        most = max(int(c.get("trees_tried", 0)), len(c.get("first_30_lengths_tried", [])), 1)
        for tree, length in itertools.islice(trees(c["seed"], options), most):
            lengths.append(length)
            source = ""
            if len(kept) < len(listed) and options.min_length < length < options.max_length:
                source = source_of(tree)
            if source and source not in seen:
                seen.add(source)
                whole = dict(length=length, target=value_of(tree), tokens=" ".join(tokens_of(tree)), source=source)
                kept.append({key: value for key, value in whole.items() if key in listed[len(kept)]})
                tried = len(lengths)
        computed[f"config.{name}.trees_tried"] = tried
        computed[f"config.{name}.first_30_lengths_tried"] = lengths[: len(c.get("first_30_lengths_tried", []))]
        computed[f"config.{name}.examples"] = kept
        texts = [(row[key], row["target"]) for row in listed for key in ("tokens", "source") if key in row]
        wrong = sum(value_of(parse(text)) != target for text, target in texts)
        computed[f"{name}: values of the texts"] = Check(float(wrong), 0.0, "texts whose value is another")
    return computed


PATHFINDER = {
    "window": 32, "padding": 1, "seed_distance": 7, "marker_radius": 1.5, "contour_length": 14, "paddle_length": 2,
    "paddle_thickness": 0.5, "margin": 1, "continuity": 1.0, "distractor_length": 4, "num_distractor_snakes": 5,
    "antialias_scale": 2, "snake_contrast_list": [2], "paddle_contrast_list": [0.75], "use_single_paddles": False,
}  # fmt: skip


def pathfinder_samples(file: ReferenceFile) -> Computed:
    """What can be said of images that no generator repeats: type, range, statistics, settings."""
    images, labels = file.outputs["images"], file.outputs["labels"]
    odd = [key for key in PATHFINDER.keys() | file.config.keys() if file.config.get(key) != PATHFINDER.get(key)]
    if images.dtype != torch.uint8 or images.dim() != 3 or labels.shape != images.shape[:1]:
        raise UserError(f"out.images is {images.dtype} {tuple(images.shape)}, out.labels {tuple(labels.shape)}")
    flat = images.flatten(1)
    extremes = ((flat.amin(1) != 0) | (flat.amax(1) != 255)).sum()
    grey, share = flat.float().mean().item(), (flat > 40).float().mean().item()
    side = 0.0 if images.shape[1:] == (32, 32) else 1.0
    return {
        "out.images": Check(float(extremes), 0.0, "images that do not span 0 to 255"),
        "out.labels": Check(float(((labels != 0) & (labels != 1)).sum()), 0.0, "labels that are neither 0 nor 1"),
        "window": Check(side, 0.0, "images of 32 x 32"),
        "mean grey": Check(abs(grey - 20.5), 3.5, f"{grey:.1f}, 17 to 24"),
        "share above 40": Check(abs(share - 0.14), 0.03, f"{share:.3f}, 0.11 to 0.17"),
        "settings": Check(float(len(odd)), 0.0, f"other than specified: {', '.join(sorted(odd))}" if odd else ""),
    }
