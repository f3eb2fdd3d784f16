"""The tiny models of reference files: plain ViTs, whole SPT models, their training steps and their merged form."""

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from paperkit.errors import UserError
from paperkit.files.weights import load_strict
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import Check
from spt.method.allocation import Rule, Selection
from spt.method.candidates import OPERATIONS, find_candidates
from spt.method.tuning import Placement, apply_selection, count_trained, merge, optimizer_groups
from spt.models.official_keys import our_key, released_key
from spt.models.selection_file import operation_name

SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes", "low_rank_dim")
VIT_OPTIONS = ("mlp_ratio", "qkv_bias", "norm_eps")
BLOCKS = {"BlockSPTParallel": "parallel", "BlockSPTSeq": "sequential"}


def build_vit(config: dict[str, Any]) -> VisionTransformer:
    """The tiny ViT of a config, plain timm."""
    return VisionTransformer(
        img_size=config["img_size"],
        patch_size=config["patch_size"],
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        num_classes=config["num_classes"],
        mlp_ratio=config.get("mlp_ratio", 4),
        qkv_bias=config.get("qkv_bias", True),
        norm_layer=partial(nn.LayerNorm, eps=config.get("norm_eps", 1e-6)),
    )


def block_position(config: dict[str, Any]) -> Any:
    if config["block"] not in BLOCKS:
        raise UserError(f"block {config['block']!r} is none of {', '.join(BLOCKS)}")
    return BLOCKS[config["block"]]


def build_spt(file: ReferenceFile) -> nn.Module:
    """The tiny SPT model of a `vit_spt`, `train_steps` or `merged_spt_lora` file, weights loaded, dropout off."""
    c = file.config
    model = build_vit(c)
    candidates = find_candidates(model)
    modules = [n.split(".structured_") for n in {k.split(".learnable")[0] for k in file.state if ".structured_" in k}]
    index = dict(file.part("in.mask_index."))
    shapes = candidates.shapes()
    entries = {}
    for name, places in index.items():
        if name not in shapes:
            raise UserError(f"in.mask_index.{name} names no candidate")
        shape = shapes[name]
        entries[name] = places[:, 0] * shape[1] + places[:, 1] if len(shape) == 2 else places[:, 0]
    selection = Selection(
        sorted(f"{owner}.{operation}.weight" for owner, operation in modules),
        list(c["tuned_vectors"]),
        entries,
        shapes,
        Rule(c["structured_type"], c["low_rank_dim"], structured_vector=c["structured_bias"], fixed=c["embed_dim"]),
    )
    apply_selection(model, selection, Placement(block_position(c), drop=0, drop_path=0))
    state = {our_key(name): value for name, value in file.state.items()}
    buffers = {name: value for name, value in model.state_dict().items() if name.endswith("_index")}
    load_strict(model, {**state, **buffers}, str(file.path))
    model.counted = selection.counted  # type: ignore[assignment]
    return model


def _model_facts(file: ReferenceFile, model: nn.Module) -> dict[str, Any]:
    groups = optimizer_groups(model)
    named = [{released_key(name) for name in group["names"]} for group in groups]
    reference = [set(group["names"]) for group in file.config["optimizer_groups"]]
    # The released grouping has an empty third group with decay.
    same = sorted(map(sorted, named)) == sorted(map(sorted, filter(None, reference)))
    decay, rates = file.config.get("weight_decay", 1e-4), (1e-3, file.config.get("lr", 1e-3))
    decays = all(
        group["weight_decay"] == (decay if set(group["names"]) == named[0] or not group["names"] else 0.0)
        and group["lr"] in rates
        and list(group["betas"]) == [0.9, 0.999]
        and group["eps"] == 1e-8
        for group in file.config["optimizer_groups"]
    )
    trained = {released_key(name) for name, p in model.named_parameters() if p.requires_grad}
    # Counted in float32 millions (or whatever the unit) by the released code: whole numbers up to rounding.
    counted = abs(float(model.counted) - file.config["reported_params"])  # type: ignore[arg-type]
    return {
        "config.optimizer_groups": Check(0.0 if same and decays else 1.0, 0.0, "names, decay, lr, betas, eps"),
        "config.trainable": trained,
        "config.really_trainable_without_head": count_trained(model).trained,
        "config.reported_params": Check(counted, 1e-3, f"{model.counted} counted"),
    }


def compute_vit_spt(file: ReferenceFile) -> dict[str, Any]:
    model = build_spt(file).eval()
    chosen = torch.tensor(flags_of_state(file))
    logits = model(file.inputs["images"])
    (logits * file.inputs["cotangent"]).sum().backward()
    if "tuned_matrices" in file.inputs and not torch.equal(chosen, file.inputs["tuned_matrices"]):
        raise UserError("in.tuned_matrices does not agree with the modules in sd.*")
    grads = {f"grad.{released_key(n)}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"out.logits": logits, **grads, **_model_facts(file, model)}


def flags_of_state(file: ReferenceFile) -> list[list[int]]:
    """Six flags a block as the keys of the file's state show them."""
    rows = max(12, file.config["depth"])
    return [
        [
            int(
                any(
                    k.startswith(operation_name(b, op).replace(f".{op}.weight", f".structured_{op}."))
                    for k in file.state
                )
            )
            for op in OPERATIONS
        ]
        for b in range(rows)
    ]


def compute_train_steps(file: ReferenceFile) -> dict[str, Any]:
    c = file.config
    model = build_spt(file).train()
    groups = [{k: v for k, v in group.items() if k != "names"} for group in optimizer_groups(model, c["weight_decay"])]
    optimizer = torch.optim.AdamW(groups, lr=c["lr"], betas=(0.9, 0.999), eps=1e-8)
    losses = []
    for step in range(c["steps"]):
        batch = slice(step * c["batch_size"], (step + 1) * c["batch_size"])
        loss = F.cross_entropy(model(file.inputs["images"][batch]), file.inputs["labels"][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    after = {f"out.after{c['steps']}.{released_key(n)}": p for n, p in model.named_parameters() if p.requires_grad}
    return {"out.losses": torch.stack(losses), **after, **_model_facts(file, model)}


def compute_merged(file: ReferenceFile) -> dict[str, Any]:
    model = build_spt(file).eval()
    facts = _model_facts(file, model)
    merged = merge(model)
    with torch.no_grad():
        logits = merged(file.inputs["images"])
    return {"out.logits": logits, **{f"out.merged.{n}": v for n, v in merged.state_dict().items()}, **facts}
