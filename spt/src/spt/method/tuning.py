"""A pre-trained model made into an SPT model (paper section 3.3): trained is what a selection names, and no more."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from paperkit.errors import UserError
from spt.method.allocation import Selection
from spt.method.candidates import find_candidates, separate_name
from spt.method.split_qkv import SplitQKV, split_qkv_layers
from spt.method.structured import Init
from spt.method.tuned_linear import TunedLinear


@dataclass(frozen=True)
class Placement:
    """How modules stand in the blocks.

    Attributes:
        block: `parallel` (released with LoRA): modules see a Linear's input. `sequential` (released with Adapter): they
            see its output. `proj` is parallel and without dropout in both, as released.
        init: see `spt.method.structured.StructuredModule`.
        drop: dropout on a module's input (released: 0.1).
        drop_path: drop path on a module's output (released: 0.1).
    """

    block: Literal["parallel", "sequential"] = "parallel"
    init: Init = "zero"
    drop: float = 0.1
    drop_path: float = 0.1


def check_selection(
    model: nn.Module, selection: Selection, head: str = "head", fixed: tuple[str, ...] = ("cls_token",)
) -> None:
    """Refuses a selection that was made for another architecture.

    Raises:
        UserError: naming the first name that is unknown, of another shape, or whose entries lie outside.
    """
    shapes = find_candidates(model, head, fixed).shapes()
    for name in [*selection.modules, *selection.vectors, *selection.entries]:
        made_for = selection.shapes.get(name)
        if name not in shapes:
            raise UserError(
                f"the selection is of another architecture: it names {name}, which {type(model).__name__} lacks"
            )
        if made_for is not None and made_for != shapes[name]:
            raise UserError(
                f"the selection is of another architecture: {name} is {list(made_for)} there, {list(shapes[name])} here"
            )
    for name, index in selection.entries.items():
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < shapes[name].numel():
            raise UserError(f"the selection's entries of {name} lie outside its shape {list(shapes[name])}")


def apply_selection(
    model: nn.Module,
    selection: Selection,
    placement: Placement | None = None,
    head: str = "head",
    fixed: tuple[str, ...] = ("cls_token",),
) -> nn.Module:
    """Freezes `model` in place but for what `selection` names, the head and `fixed`; returns it.

    Marked entries outside Linears (LayerNorm) are counted by the rule but not trained, as released.

    Raises:
        UserError: for a selection of another architecture.
    """
    placement = placement or Placement()
    check_selection(model, selection, head, fixed)
    rule = selection.rule
    split_qkv_layers(model)
    model.requires_grad_(False)
    candidates = find_candidates(model, head, fixed)
    owners = {separate_name(item.holder): item.holder for item in candidates}
    parameters = dict(model.named_parameters())
    for name in candidates.always:
        parameters[name].requires_grad_(True)
    for name in selection.modules:
        linear = _tuned(model, owners[name].removesuffix(".weight"))
        is_proj = name.endswith(".proj.weight")
        position = "parallel" if is_proj else placement.block
        drop = 0.0 if is_proj else placement.drop
        linear.add_module_beside(
            rule.structured_type,  # type: ignore[arg-type]
            rule.rank,
            position,
            rule.structured_vector,
            placement.init,
            drop,
            placement.drop_path,
        )
    for name, index in selection.entries.items():
        path, _, leaf = owners[name].rpartition(".")
        module = model.get_submodule(path)
        if index.numel() and isinstance(module, nn.Linear | TunedLinear):
            _tuned(model, path).add_entries("weight" if leaf == "weight" else "bias", index)
    # A vector is the same Parameter before and after its Linear was wrapped.
    for name in selection.vectors:
        parameters[owners[name]].requires_grad_(True)
    for module in model.modules():
        if isinstance(module, SplitQKV):
            module.shared_drop.p = placement.drop
            module.join()
    return model


def _tuned(model: nn.Module, path: str) -> TunedLinear:
    """The TunedLinear at `path`, made of the Linear there when it is not one yet."""
    module = model.get_submodule(path)
    if isinstance(module, TunedLinear):
        return module
    was = {name: p.requires_grad for name, p in module.named_parameters()}
    tuned = TunedLinear(module)  # type: ignore[arg-type]
    for name, trained in was.items():
        getattr(tuned, name).requires_grad_(trained)
    model.set_submodule(path, tuned)
    return tuned


@dataclass(frozen=True)
class Spent:
    """Parameters really trained and the model's size.

    Attributes:
        trained: trainable scalars without the head.
        head: trainable scalars of the head.
        total: scalars of the model, frozen ones included.
    """

    trained: int
    head: int
    total: int


def count_trained(model: nn.Module, head: str = "head") -> Spent:
    """Counts what the optimiser will really see."""
    trained = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and head not in name)
    in_head = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and head in name)
    return Spent(trained, in_head, sum(p.numel() for p in model.parameters()))


def optimizer_groups(model: nn.Module, weight_decay: float = 1e-4) -> list[dict]:
    """Parameter groups as released: decay for tensors of more than one dimension, none for vectors, biases, class
    token.

    Sparse values are one-dimensional and so get no decay.
    """
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    names: tuple[list[str], list[str]] = ([], [])
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim <= 1 or name.endswith((".bias", "pos_embed", "cls_token", "dist_token"))
        (plain if exempt else decay).append(parameter)
        names[exempt].append(name)
    return [
        {"params": decay, "weight_decay": weight_decay, "names": names[0]},
        {"params": plain, "weight_decay": 0.0, "names": names[1]},
    ]


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Folds entries and linear modules into the weights in place and gives plain Linears back (paper section 3.4).

    The result is a plain timm model with fused qkv that computes the same in evaluation.

    Raises:
        UserError: for adapters, which are not linear.
    """
    for name, module in model.named_modules():
        if isinstance(module, TunedLinear) and module.structured is not None and not module.structured.mergeable:
            raise UserError(f"an adapter cannot be merged, it is not linear: {separate_name(name + '.')[:-1]} has one")
    return _plain(model, keep_tuning=True)


@torch.no_grad()
def strip(model: nn.Module) -> nn.Module:
    """Takes every module and entry out again, in place: the frozen weights are bit for bit the pre-trained ones.

    Tuned vectors, class token and head are parameters of the model itself and stay as they are.
    """
    return _plain(model, keep_tuning=False)


def _plain(model: nn.Module, keep_tuning: bool) -> nn.Module:
    for name, module in list(model.named_modules()):
        if isinstance(module, TunedLinear):
            weight = module.merged_weight() if keep_tuning else module.weight.detach()
            bias = module.merged_bias() if keep_tuning else module.bias
            linear = nn.Linear(module.in_features, module.out_features, bias is not None, device="meta")
            linear.weight = nn.Parameter(weight)
            if bias is not None:
                linear.bias = nn.Parameter(bias.detach())
            model.set_submodule(name, linear)
    for name, module in list(model.named_modules()):
        if isinstance(module, SplitQKV):
            model.set_submodule(name, module.fused())
    return model
