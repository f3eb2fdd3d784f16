"""Which scalars compete for the budget, and under which names (paper section 3.2; the names of the released files).

The paper treats query, key and value as three matrices. timm holds them as one `qkv` Linear, so every name here is
the one of the separate model (`blocks.0.attn.q.weight`), together with the rows of the parameter that really holds it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from paperkit.errors import UserError

QKV = ("q", "k", "v")
OPERATIONS = ("q", "k", "v", "proj", "fc1", "fc2")  # the order of the six flags of a block in released files
NEVER_CANDIDATES = ("head", "cls_token", "patch_embed", "pos_embed")
# torch reads the weights of these parents' Linears itself, so a replaced Linear would be passed over in silence.
READS_WEIGHTS_DIRECTLY = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(frozen=True)
class Candidate:
    """One parameter that may be tuned.

    Attributes:
        name: name in the model with separate q, k and v, e.g. `blocks.0.attn.k.weight`.
        shape: [out, in] of a matrix, [length] of a vector.
        kind: `matrix` may get a module, `vector` may be trained whole.
        holder: name of the parameter of the model at hand that holds it, e.g. `blocks.0.attn.qkv.weight`.
        start: first row of `holder` that belongs to it (0 unless fused).
    """

    name: str
    shape: torch.Size
    kind: Literal["matrix", "vector"]
    holder: str
    start: int = 0

    def view(self, holder: Tensor) -> Tensor:
        """The candidate's rows of its holder (a view)."""
        return holder.narrow(0, self.start, self.shape[0])


@dataclass
class Candidates:
    """All candidates of a model in the order of `named_parameters` of the separate model, and what stays frozen.

    Attributes:
        items: the candidates.
        frozen: name -> reason, for every parameter that is neither a candidate nor always trained.
        always: names trained in full whatever the budget (head, class token).
    """

    items: list[Candidate] = field(default_factory=list)
    frozen: dict[str, str] = field(default_factory=dict)
    always: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.items)

    def shapes(self) -> dict[str, torch.Size]:
        """Name -> shape, in order."""
        return {item.name: item.shape for item in self.items}


def separate_name(name: str) -> str:
    """Name in the separate model of a parameter of a model whose `qkv` was split (`attn.qkv.q.w` ->
    `attn.q.w`)."""
    for part in QKV:
        name = name.replace(f".qkv.{part}.", f".{part}.")
    return name


def is_norm(module: nn.Module) -> bool:
    """True for LayerNorm, RMSNorm, BatchNorm, GroupNorm and their subclasses in timm and transformers."""
    return "norm" in type(module).__name__.lower()


def is_fused_qkv(name: str, module: nn.Module) -> bool:
    """True when the Linear called `name` computes q, k and v at once, as in timm's attention."""
    return name.rsplit(".", 1)[-1] == "qkv" and isinstance(module, nn.Linear) and module.out_features % 3 == 0


def block_names(model: nn.Module) -> list[str]:
    """The innermost repeated units that hold Linears: `blocks.3`, `layers.2.blocks.0`, `encoder.layer.5`."""
    found = []
    for name, container in model.named_modules():
        if not isinstance(container, nn.ModuleList | nn.Sequential):
            continue
        for key, child in container.named_children():
            if not isinstance(child, nn.Linear) and any(isinstance(module, nn.Linear) for module in child.modules()):
                found.append(f"{name}.{key}" if name else key)
    # A stage of Swin is a unit of a container too, but it holds blocks; only the innermost count.
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


def find_candidates(model: nn.Module, head: str = "head", fixed: tuple[str, ...] = ("cls_token",)) -> Candidates:
    """Sorts every parameter of `model` into candidates, always trained, and frozen.

    The released rule by names decides wherever a ViT's names match it. For other models (our reading): the weight of a
    Linear in a block is a matrix; the bias of such a Linear and the parameters of a block's norm layers are vectors,
    and so are those of a norm layer at the top level; everything else (LayerScale, register tokens, patch merging,
    convolutions, Swin's position tables) stays frozen and is listed with its reason.

    Args:
        head: substring of the names of the classifier, which is always trained.
        fixed: substrings of the names of other parameters that are always trained and counted (the class token).

    Raises:
        UserError: if no Linear of a block is a candidate.
    """
    found = Candidates()
    blocks = tuple(f"{name}." for name in block_names(model))
    modules = dict(model.named_modules())
    for module_name, module in modules.items():
        prefix = f"{module_name}." if module_name else ""
        parent = modules.get(module_name.rpartition(".")[0])
        own = {prefix + key: value for key, value in module.named_parameters(recurse=False)}
        always = {name for name in own if head in name or any(word in name for word in fixed)}
        found.always += sorted(always, key=list(own).index)
        rest = {name: value for name, value in own.items() if name not in always}
        if not rest:
            continue
        if any(word in name for word in NEVER_CANDIDATES for name in rest):
            reason = "embedding"
        elif isinstance(parent, READS_WEIGHTS_DIRECTLY) and isinstance(module, nn.Linear):
            reason = f"{type(parent).__name__} reads this weight itself"
        elif isinstance(module, nn.Linear) and module_name.startswith(blocks):
            found.items += _of_linear(module_name, module)
            continue
        elif is_norm(module) and (module_name.startswith(blocks) or "." not in module_name):
            found.items += [Candidate(separate_name(name), value.shape, "vector", name) for name, value in rest.items()]
            continue
        else:
            reason = f"{type(module).__name__} is not tuned"
        found.frozen.update(dict.fromkeys(rest, reason))
    if not any(item.kind == "matrix" for item in found.items):
        raise UserError(
            f"{type(model).__name__} has no Linear in a repeated block that can be tuned; "
            f"frozen: {', '.join(list(found.frozen)[:4]) or 'nothing'}"
        )
    return found


def _of_linear(name: str, linear: nn.Linear) -> list[Candidate]:
    """Candidates of one Linear; a fused qkv gives q, k, v in this order, weight before bias."""
    fused = is_fused_qkv(name, linear)
    parts = QKV if fused else ("",)
    rows = linear.out_features // len(parts)
    items = []
    for index, part in enumerate(parts):
        stem = f"{name.rpartition('.')[0]}.{part}" if fused else name
        weight = separate_name(f"{stem}.weight")
        items.append(
            Candidate(weight, torch.Size([rows, linear.in_features]), "matrix", f"{name}.weight", index * rows)
        )
        if linear.bias is not None:
            bias = separate_name(f"{stem}.bias")
            items.append(Candidate(bias, torch.Size([rows]), "vector", f"{name}.bias", index * rows))
    return items
