"""Reference files of whole supernets, recomputed: sub-networks of one set of weights, and steps of training."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from focusformer.method.architecture import Architecture, SuperSizes
from focusformer.method.attention import Relative
from focusformer.method.cost import official_flops, params
from focusformer.method.supernet import Supernet
from focusformer.method.unsampled import clear_gradients
from focusformer.verification.layers import HEAD_DIM, Computed, count, gradients
from paperkit.errors import UserError
from paperkit.files.keys import load_strict
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import Check, check_options

_OFFICIAL = {
    "img_size": 224, "patch_size": 16, "in_chans": 3, "num_classes": 1000, "embed_dim": 768, "depth": 12,
    "num_heads": 12, "mlp_ratio": 4.0, "qkv_bias": False, "drop_rate": 0.0, "drop_path_rate": 0.0, "pre_norm": True,
    "scale": False, "gp": False, "relative_position": False, "change_qkv": False, "abs_pos": True,
    "max_relative_position": 14,
}  # fmt: skip
"""Arguments of the official model, with their defaults there."""


def supernet_of(file: ReferenceFile, relative: Relative = "separable") -> Supernet:
    """The supernet that a file's config describes, with the file's weights, in their precision.

    Raises:
        UserError: an option that the official model does not have, sizes that cannot be, weights of others.
    """
    check_options(file.config["model"], _OFFICIAL, "model")
    model: dict[str, Any] = {**_OFFICIAL, **file.config["model"]}
    sizes = SuperSizes(
        embed=model["embed_dim"], depth=model["depth"], heads=model["num_heads"], ratio=model["mlp_ratio"],
        head_dim=HEAD_DIM if model["change_qkv"] else model["embed_dim"] // max(model["num_heads"], 1),
        **{name: model[name] for name in (
            "img_size", "patch_size", "in_chans", "num_classes", "relative_position", "max_relative_position",
            "abs_pos", "change_qkv", "qkv_bias", "gp", "scale", "pre_norm",
        )},
    )  # fmt: skip
    network = Supernet(sizes, drop_rate=model["drop_rate"], drop_path_rate=model["drop_path_rate"], relative=relative)
    network.to(file.inputs[next(name for name in file.inputs if name.startswith("x"))].dtype)
    load_strict(network, file.state, "the state dict")
    return network


def supernet(file: ReferenceFile) -> Computed:
    """Logits, features, loss, gradients and counts of several sub-networks."""
    network, computed = supernet_of(file).eval(), Computed()
    images, target = file.inputs["x"].clone().requires_grad_(), file.inputs["target"]
    for i, case in enumerate(file.config["cases"]):
        architecture = Architecture.from_official(case)
        features = network.forward_features(images, architecture)
        logits = network.head(features)
        loss = cross_entropy(logits, target)
        computed |= {
            f"out.features.{i}": features,
            f"out.logits.{i}": logits,
            f"out.loss.{i}": loss,
            f"out.params.{i}": count(params(network.sizes, architecture)),
            f"out.flops.{i}": count(official_flops(network.sizes, architecture)),
            **gradients(file, str(i), loss, {"x": images, **dict(network.named_parameters())}),
        }
    return computed


def train_steps(file: ReferenceFile) -> Computed:
    """Steps of AdamW, each of another sub-network.

    Of the weights after them a share of entries must agree closely and all of them loosely: the exact gradient of a key
    bias is 0, so that Adam turns its rounding into steps, which the contiguous bias slice hands on to the rest. The
    official form of attention on one thread rounds as the released code did where the files were made.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train_steps(file)
    finally:
        torch.set_num_threads(threads)


def _train_steps(file: ReferenceFile) -> Computed:
    c, network = file.config, supernet_of(file, "official").train()
    if network.drop_rate or any(network.path_rates):
        raise UserError("training steps are compared without dropout and drop path; drop_rate or drop_path_rate is set")
    optimizer = torch.optim.AdamW(network.parameters(), lr=c["lr"], weight_decay=c["weight_decay"])
    computed = Computed()
    for i, case in enumerate(c["cases"]):
        clear_gradients(optimizer, "decay")
        logits = network(file.inputs[f"x.{i}"], Architecture.from_official(case))
        loss = cross_entropy(logits, file.inputs[f"target.{i}"])
        loss.backward()
        optimizer.step()
        computed[f"out.loss.{i}"] = loss
    weights = dict(network.named_parameters())
    for key, wanted in file.part("out.after.").items():
        if key not in weights:
            continue  # `verify` says that it was not computed
        off = (weights[key].detach() - wanted).abs() / wanted.abs().max().clamp(min=1e-30)
        loose = key.endswith("attn.qkv.bias")
        far = 1 - (off <= 1e-4).double().mean().item()
        computed[f"out.after.{key}"] = Check(far, 0.4 if loose else 0.05, "share of entries off by more than 1e-4")
        largest = off.nan_to_num(float("inf")).max().item()
        computed[f"largest.{key}"] = Check(largest, 5e-2 if loose else 1e-2, "the largest of its differences")
    return computed
