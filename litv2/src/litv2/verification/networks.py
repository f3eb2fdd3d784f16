"""Reference files of whole networks: classifiers, a training step, backbones, counts, optimiser and schedule."""

from typing import Any

import torch

from litv2.method.costs import official_macs
from litv2.models.backbone import LITv2Backbone
from litv2.models.classifier import LITv2
from litv2.training.recipe import Recipe, group_names, make_optimizer, parameter_groups
from litv2.verification.layers import Computed, expect, load
from paperkit.errors import UserError
from paperkit.verification.verify import ReferenceFile, check_options

NETWORK = (
    "patch_size", "in_chans", "num_classes", "embed_dim", "depths", "num_heads", "mlp_ratio", "qkv_bias", "alpha",
    "local_ws", "has_msa", "drop_path_rate",
)  # fmt: skip


def _network_options(file: ReferenceFile, *without: str) -> dict[str, Any]:
    return {key: file.config[key] for key in NETWORK if key in file.config and key not in without}


def recompute_litv2(file: ReferenceFile) -> Computed:
    """A classifier in eval mode: every stage, features, logits, the authors' count."""
    model = LITv2(**_network_options(file))
    load(model, file)
    computed: dict[str, Any] = {}
    for side in file.config["img_sizes"]:
        image = file.inputs[f"image_{side}"]
        x = model.patch_embed(image)
        computed[f"out.patch_embed_{side}"] = x.flatten(1, 2)
        for i, stage in enumerate(model.each_stage()):
            x = stage(x)
            if stage.downsample is not None:
                x = stage.downsample(x)
            computed[f"out.stage{i}_{side}"] = x.flatten(1, 2)
        computed[f"out.features_{side}"] = model.forward_head(model.norm(x), pre_logits=True)
        computed[f"out.logits_{side}"] = model(image)
    computed["config.official_flops"] = {side: model.macs(side, official=True) for side in file.config["img_sizes"]}
    return computed


def recompute_litv2_train(file: ReferenceFile) -> Computed:
    """One training step: loss, logits, gradients, BatchNorm's buffers after it."""
    expect(file.config, "loss", "soft target cross entropy, mean over batch")
    model = load(LITv2(**_network_options(file)), file).train()
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


def recompute_litv1(file: ReferenceFile) -> Computed:
    """LITv1: relative positions over the whole grid."""
    c = file.config
    model = LITv2(attention="msa", pos="rel", img_size=c["img_size"], **_network_options(file))
    load(model, file)
    features = model.forward_head(model.forward_features(file.inputs["image"]), pre_logits=True)
    return {
        "out.features": features,
        "out.logits": model.head(features),
        "config.official_flops": model.macs(c["img_size"], official=True),
    }


def recompute_backbone(file: ReferenceFile) -> Computed:
    """Maps c2 to c5 of a dense backbone."""
    c = file.config
    default = (0, 1, 2, 3) if file.kind == "backbone_seg" else (1, 2, 3)
    if c.get("task", file.kind[-3:]) != file.kind[-3:]:
        raise UserError(f"task {c['task']!r} in a file of kind {file.kind}")
    indices = c.get("out_indices", (0, 1, 2, 3))
    model = LITv2Backbone(indices, c.get("out_norms", default), **_network_options(file, "num_classes"))
    load(model, file)
    computed = {}
    for height, width in c["sizes"]:
        for i, y in zip(indices, model(file.inputs[f"image_{height}x{width}"]), strict=True):
            computed[f"out.c{i + 2}_{height}x{width}"] = y
    return computed


def recompute_macs(file: ReferenceFile) -> Computed:
    """Parameters and the authors' count of a list of sizes."""
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


def recompute_optim_schedule(file: ReferenceFile) -> Computed:
    """The tiny model's options are not in the file: they are those of the `litv2_tiny*` files."""
    c = file.config
    tiny = dict(embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), num_classes=10, alpha=0.9)
    model = LITv2(**tiny)  # type: ignore[arg-type]
    recipe = Recipe(lr=c["base_lr_config"], epochs=c["epochs"], warmup_epochs=c["warmup_epochs"])
    recipe.offset_lr_multi = c["offset_lr_multi"]
    recipe = recipe.scaled(c["world_size"] * c["batch_per_gpu"])
    names = group_names(model)
    groups = [
        {"names": names[group["name"]], "lr": group["lr"], "weight_decay": group["weight_decay"]}
        for group in parameter_groups(model, recipe)
    ]
    optimizer, schedule = make_optimizer(model, recipe, c["iters_per_epoch"])
    steps, told = c["epochs"] * c["iters_per_epoch"], len(file.outputs["lr"])
    if told != steps + 1:
        raise UserError(
            f"epochs x iters_per_epoch is {steps}, but out.lr has {told} rows: one more than steps is right"
        )
    rows = []
    for done in range(steps + 1):
        schedule.advance(done)
        rows.append([group["lr"] for group in optimizer.param_groups])
    return {"out.lr": torch.tensor(rows, dtype=torch.float64), "config.groups": groups}
