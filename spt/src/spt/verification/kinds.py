"""What each kind of reference file computes (`spt verify`): the same code that users run, on the file's inputs."""

from functools import partial
from typing import Any

import numpy
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from paperkit.errors import UserError
from paperkit.files.weights import load_strict
from paperkit.training import optim
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import Check, Kind, Tolerance
from spt.method.allocation import Rule, Selection, rank_scalars
from spt.method.budget import official_selections, sweep, sweep_taus
from spt.method.candidates import OPERATIONS, find_candidates
from spt.method.sensitivity import squared_gradients
from spt.method.sparse import Places, frozen_linear
from spt.method.split_qkv import fuse_state, split_state
from spt.method.structured import StructuredModule, module_cost
from spt.method.tuning import Placement, apply_selection
from spt.models.backbones import npz_to_state
from spt.models.official_keys import our_key, released_key
from spt.models.selection_file import ALLOWED, check_content, flags, operation_name
from spt.training.recipe import RecipeOptions
from spt.verification.models import (
    SIZES,
    VIT_OPTIONS,
    block_position,
    build_vit,
    compute_merged,
    compute_train_steps,
    compute_vit_spt,
)


def _sensitivity(file: ReferenceFile) -> dict[str, Tensor]:
    config = file.config
    if config.get("drop_path_rate", 0):
        raise UserError("a reference with drop path depends on random draws; drop_path_rate must be 0")
    model = build_vit(config)
    load_strict(model, fuse_state(dict(file.state)), str(file.path))
    images, labels = file.inputs["images"], file.inputs["labels"]
    size = config["batch_size"]
    model.train()
    with squared_gradients(dict(model.named_parameters())) as sums:
        for index in range(config["batches"]):
            batch = slice(index * size, (index + 1) * size)
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
    model.eval()
    with torch.no_grad():
        logits = model(images)
    return {"out.logits": logits, **{f"out.sens.{name}": value for name, value in split_state(sums).items()}}


def _rule(config: dict[str, Any]) -> Rule:
    return Rule(
        config["structured_type"],
        config["low_rank_dim"],
        config["alpha"],
        config["beta"],
        config["structured_vector"],
        config["structured_only"],
        config["cls_params"],
    )


def _selection(file: ReferenceFile) -> dict[str, Any]:
    config = file.config
    given = file.part("in.sens.")
    for name in config["parameter_order"]:
        if list(given[name].shape) != list(config["shapes"][name]):
            raise UserError(f"in.sens.{name} is not of the shape in the config")
    skipped = ("head", "cls_token", "patch_embed", "pos_embed")
    values = {n: given[n] for n in config["parameter_order"] if not any(word in n for word in skipped)}
    rule, unit = _rule(config), config["unit"]
    points = sweep(rank_scalars(values, max(sweep_taus(unit))), rule, unit)
    rows = [[p.tau, p.sparse, p.structured, p.modules, p.vectors] for p in points]
    answer: dict[str, Any] = {"out.sweep": torch.tensor(rows, dtype=torch.float64)}
    results: dict[str, Any] = {}
    for budget, (point, selection) in official_selections(values, rule, unit).items():
        key = str(budget)
        starts, pieces, start = {}, [], 0
        for name, index in selection.entries.items():
            starts[name] = start
            pieces.append(index + start)
            start += selection.shapes[name].numel()
        answer[f"out.{key}.unstructured_indexes"] = torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int64)
        answer[f"out.{key}.tuned_matrices"] = torch.tensor(flags(selection))
        results[key] = {
            "tau": point.tau,
            "params": point.total(rule.fixed, unit),
            "unstructured_params": float(point.sparse),
            "structured_params": float(point.structured),
            "tuned_vectors": selection.vectors,
            "unstructured_names": list(selection.entries),
        }
    return {**answer, "config.results": results}


def _structured(file: ReferenceFile) -> dict[str, Tensor]:
    c = file.config
    module = StructuredModule(c["in_dim"], c["out_dim"], c["low_rank_dim"], c["structured_type"], c["bias"])
    load_strict(module, dict(file.state), str(file.path))
    x = file.inputs["x"].clone().requires_grad_()
    y = module(x)
    (y * file.inputs["cotangent"]).sum().backward()
    return {"out.y": y, "grad.x": x.grad, **{f"grad.{n}": p.grad for n, p in module.named_parameters()}}


def _block(file: ReferenceFile) -> dict[str, Tensor]:
    c = file.config
    position = block_position(c)
    block = Block(c["dim"], c["num_heads"], c["mlp_ratio"], qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))  # type: ignore[arg-type]
    carrier = nn.ModuleDict({"blocks": nn.ModuleList([block])})
    shapes = find_candidates(carrier).shapes()
    modules = [operation_name(0, op) for op, flag in zip(OPERATIONS, c["structured_list"], strict=True) if flag]
    selection = Selection(
        modules, [], {}, shapes, Rule(c["structured_type"], c["low_rank_dim"], structured_vector=c["bias"])
    )
    apply_selection(carrier, selection, Placement(position, drop=0, drop_path=0))
    carrier.requires_grad_(True).eval()
    load_strict(carrier, {f"blocks.0.{our_key(name)}": value for name, value in file.state.items()}, str(file.path))
    x = file.inputs["x"].clone().requires_grad_()
    y = carrier["blocks"][0](x)  # type: ignore[index]
    (y * file.inputs["cotangent"]).sum().backward()
    answer = {"out.y": y, "grad.x": x.grad}
    for name, parameter in carrier.named_parameters():
        answer[f"grad.{released_key(name).removeprefix('blocks.0.')}"] = parameter.grad
    return answer


def _sparse_linear(file: ReferenceFile) -> dict[str, Tensor]:
    state = {name: value.clone().requires_grad_(name != "weight") for name, value in file.state.items()}
    row, col = file.inputs["sparse_weight_indexes"]
    x = file.inputs["x"].clone().requires_grad_()
    bias = state.get("bias")
    if "sparse_bias" in state:
        if bias is None:
            raise UserError("sd.sparse_bias without sd.bias")
        bias = bias.index_add(0, file.inputs["sparse_bias_indexes"][0], state["sparse_bias"])
    weight = file.state["weight"].clone()
    y = frozen_linear(x, weight, bias, Places.of(row, col), state["sparse_weight"])
    (y * file.inputs["cotangent"]).sum().backward()
    merged = file.state["weight"].clone()
    merged[row, col] += state["sparse_weight"].detach()
    grads = {f"grad.{name}": value.grad for name, value in {**state, "x": x}.items() if value.grad is not None}
    answer = {"out.y": y, "out.merged_weight": merged, **grads, **({} if bias is None else {"out.merged_bias": bias})}
    unchanged = float((weight - file.state["weight"]).abs().max())
    return {**answer, "frozen weight unchanged": Check(unchanged, 0.0)}  # type: ignore[dict-item]


def _split_qkv(file: ReferenceFile) -> dict[str, Tensor]:
    return {f"out.{name}": value for name, value in split_state(dict(file.inputs)).items()}


def _npz(file: ReferenceFile) -> dict[str, Tensor]:
    arrays = {name.removeprefix("npz."): numpy.asarray(value) for name, value in file.inputs.items()}
    arrays = {name.removeprefix("opt/target/"): value for name, value in arrays.items()}
    side = file.config["img_size"] // file.config["patch_size"]
    return {f"out.{name}": value for name, value in npz_to_state(arrays, (side, side)).items()}


def _lr_schedule(file: ReferenceFile) -> dict[str, Tensor]:
    c = file.config
    if c["sched"] != "cosine" or c.get("lr_noise") is not None or c.get("lr_cycle_limit", 1) != 1:
        raise UserError("only the cosine schedule without noise or cycles is in the paper's recipes")
    options = {key: c[key] for key in ("epochs", "lr", "min_lr", "warmup_lr", "warmup_epochs")}
    recipe = RecipeOptions(**options)
    groups = [{"params": [nn.Parameter(torch.zeros(1))]}]
    optimizer, schedule = optim.build(groups, recipe.optim(), 1, recipe.epochs)
    rates = []
    for epoch in range(file.outputs["lr_used_in_epoch"].numel()):
        schedule.advance(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    return {"out.lr_used_in_epoch": torch.tensor(rates, dtype=torch.float64)}


def _param_req(file: ReferenceFile) -> dict[str, Any]:
    """Counts of a selection file agree with its lists: modules * cost + vectors, for the rank that fits (1 to 64)."""
    content = check_content(file.content, file.path.name)
    sizes = {name: torch.Size(shape) for name, shape in content["unstructured_name_shapes"].items()}
    width = next((shape[1] for name, shape in sizes.items() if name.endswith("attn.q.weight")), None)
    width = width or max(shape[0] for name, shape in sizes.items() if len(shape) == 1) // 4
    vectors = sum(4 * width if name.endswith("fc1.bias") else width for name in content["tuned_vectors"])
    listed = [op for row in content["tuned_matrices"] for op, flag in zip(OPERATIONS, row, strict=True) if flag]
    shape_of = {op: torch.Size([width, width]) for op in OPERATIONS}
    shape_of["fc1"], shape_of["fc2"] = torch.Size([4 * width, width]), torch.Size([width, 4 * width])
    rest = int(content["structured_params"]) - vectors
    fits = [
        (kind, rank)
        for kind in ("lora", "adapter")
        for rank in range(1, 65)
        if sum(module_cost(kind, shape_of[op], rank) for op in listed) == rest
    ]
    note = f"{content['unstructured_indexes'].numel()} entries, {len(listed)} modules"
    return {
        "structured_params": Check(0.0 if fits else 1.0, 0.0, f"{note}; fits {fits[0] if fits else 'no rank'}"),
        "unstructured_params": Check(
            abs(float(content["unstructured_params"]) - content["unstructured_indexes"].numel()), 0.0
        ),
    }


def _summary(file: ReferenceFile) -> dict[str, Any]:
    """Counts of a table of released selections: modules times cost plus whole vectors, and the total in millions."""
    shapes = [torch.Size(shape) for shape in [(768, 768)] * 4 + [(3072, 768), (768, 3072)]]
    checks: dict[str, Any] = {}
    for kind, tasks in file.config.items():
        for task, budgets in tasks.items():
            for budget, entry in budgets.items():
                chosen = [s for row in entry["matrices"] for flag, s in zip(row, shapes, strict=True) if flag == "1"]
                vectors = entry["structured"] - sum(module_cost(kind, shape, 8) for shape in chosen)
                fits = vectors % 768 == 0 and 768 <= vectors / max(1, entry["n_tuned_vectors"]) <= 3072
                total = (entry["unstructured"] + entry["structured"] + 768) / 1e6
                error = abs(total - entry["params_million"]) if fits else 1.0
                checks[f"{kind}.{task}.{budget}"] = Check(error, 2e-6, f"{len(chosen)} modules")
    return checks


def _gradients(outputs: Tolerance, gradients: Tolerance) -> Any:
    return lambda file, key: gradients if key.startswith("grad.") else outputs


OUTPUTS = Tolerance(1e-5, 2e-5)
MODULE = _gradients(OUTPUTS, Tolerance(2e-4, 2e-5))
WHOLE = _gradients(OUTPUTS, Tolerance(2e-4, 1e-4))
MODEL_OPTIONS = (*SIZES, "model", "block", "structured_type", "structured_bias", "budget", "selection", "tuned_vectors")
FACTS = ("reported_params", "really_trainable_without_head", "trainable", "optimizer_groups")
LIMITS = {"depth": 64, "mlp_ratio": 64, "batches": 1000, "steps": 1000}  # each is an amount of work
SELECTION_OPTIONS = (
    *SIZES,
    "structured_type",
    "alpha",
    "beta",
    "structured_vector",
    "structured_only",
    "unit",
    "cls_params",
)
SELECTION = Kind(
    _selection,
    0.0,
    results=("results",),
    options=(*SELECTION_OPTIONS, "parameter_order", "shapes", "sweep_columns"),
    requires=("in.sens.*", "out.sweep", "config.results"),
)
STRUCTURED = Kind(
    _structured,
    MODULE,
    options=("in_dim", "out_dim", "low_rank_dim", "structured_type", "bias"),
    requires=("in.x", "in.cotangent", "out.y", "grad.x"),
)

KINDS: dict[str, Kind] = {
    "sensitivity": Kind(
        _sensitivity,
        lambda file, key: OUTPUTS if key == "out.logits" else Tolerance(2e-3, 1e-9),
        options=(*SIZES, *VIT_OPTIONS, "model", "batches", "batch_size", "loss", "drop_path_rate"),
        requires=("in.images", "in.labels", "out.logits", "out.sens.*", "sd.*"),
        limits=LIMITS,
    ),
    "selection": SELECTION,
    "selection_from_gradients": SELECTION,
    "structured_lora": STRUCTURED,
    "structured_adapter": STRUCTURED,
    "block": Kind(
        _block,
        MODULE,
        options=(
            "dim",
            "num_heads",
            "mlp_ratio",
            "structured_list",
            "low_rank_dim",
            "structured_type",
            "bias",
            "block",
        ),
        requires=("in.x", "in.cotangent", "out.y", "grad.x", "sd.*"),
        limits=LIMITS,
    ),
    "sparse_linear": Kind(
        _sparse_linear,
        MODULE,
        options=("in_features", "out_features", "note"),
        requires=("in.x", "in.cotangent", "out.y", "out.merged_weight", "grad.sparse_weight"),
    ),
    "vit_spt": Kind(
        compute_vit_spt,
        WHOLE,
        results=FACTS,
        options=MODEL_OPTIONS,
        requires=("in.images", "in.cotangent", "out.logits", "grad.*", "sd.*"),
        limits=LIMITS,
    ),
    "train_steps": Kind(
        compute_train_steps,
        Tolerance(0.0, 5e-4),
        results=FACTS,
        options=(
            *MODEL_OPTIONS,
            "start_from",
            "steps",
            "batch_size",
            "lr",
            "weight_decay",
            "optimizer",
            "loss",
            "drop",
        ),
        requires=("in.images", "in.labels", "out.losses", "sd.*"),
        limits=LIMITS,
    ),
    "merged_spt_lora": Kind(
        compute_merged,
        OUTPUTS,
        results=FACTS,
        options=(*MODEL_OPTIONS, "from_file", "note"),
        requires=("in.images", "out.logits", "out.merged.*", "sd.*"),
        limits=LIMITS,
    ),
    "split_qkv": Kind(_split_qkv, 0.0, options=("D",), requires=("in.*", "out.*")),
    "npz_load": Kind(_npz, OUTPUTS, options=(*SIZES, "old_grid", "note"), requires=("in.npz.*", "out.*")),
    "lr_schedule": Kind(
        _lr_schedule,
        Tolerance(0.0, 1e-12),
        options=(
            *(
                "sched",
                "epochs",
                "lr",
                "min_lr",
                "warmup_lr",
                "warmup_epochs",
                "cooldown_epochs",
                "decay_rate",
                "decay_epochs",
            ),
            *("patience_epochs", "lr_noise", "lr_noise_pct", "lr_noise_std", "seed"),
        ),
        requires=("out.lr_used_in_epoch",),
    ),
    "param_req": Kind(_param_req, 0.0, allow=ALLOWED),
    "summary": Kind(_summary, 0.0),
}
