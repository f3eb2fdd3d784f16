"""A tuned task as a small file in peft's layout: what was trained, and nothing of the backbone.

`adapter_model.safetensors` holds modules, sparse values (float32) with int32 flat indices, tuned vectors, class token
and head; `adapter_config.json` the config and the backbone it belongs to; `README.md` is a card. An entry takes about
8 bytes.

Keys: `<released key>` for every trained tensor, `<parameter>.sparse_values` and `<parameter>.sparse_index` for entries
(flat row-major in the parameter's own shape, names with separate q, k, v).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.atomic import write_atomic
from paperkit.files.weights import read_weights, save_weights
from spt.method.allocation import Rule, Selection
from spt.method.candidates import find_candidates, separate_name
from spt.method.tuned_linear import TunedLinear
from spt.method.tuning import Placement
from spt.models.official_keys import released_key

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"


@dataclass
class Delta:
    """One tuned task.

    Attributes:
        modules: released key of a module's tensor -> value.
        entries: parameter name -> (flat int32 index, float32 values).
        tensors: name -> tuned vectors, class token and head, whole; and the running statistics of BatchNorms, of the
            head always and of the backbone where training moved them.
        rule: type, rank and the rest of the allocation.
        placement: where modules stand and how they are dropped in training.
        head: substring of the classifier's names.
        fixed: substrings of the other parameters trained whole.
        base: identity of the backbone (architecture and weights fingerprints).
        extra: whatever else the config file shall hold.
    """

    modules: dict[str, Tensor]
    entries: dict[str, tuple[Tensor, Tensor]]
    tensors: dict[str, Tensor]
    rule: Rule
    placement: Placement = field(default_factory=Placement)
    head: str = "head"
    fixed: tuple[str, ...] = ("cls_token",)
    base: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def mergeable(self) -> bool:
        """False when there is an adapter."""
        return not self.modules or self.rule.structured_type != "adapter"

    def module_matrices(self) -> list[str]:
        """Names of the matrices with a module, `blocks.0.attn.q.weight`."""
        stems = {key.split(".learnable.")[0] for key in self.modules}
        return sorted(f"{owner}.{operation}.weight" for owner, _, operation in (_split_stem(stem) for stem in stems))

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        tensors = [*self.modules.values(), *self.tensors.values(), *(t for pair in self.entries.values() for t in pair)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _split_stem(stem: str) -> tuple[str, str, str]:
    """`blocks.0.attn.structured_q` -> owner, mark, operation; other models keep `<linear>.structured`."""
    owner, _, leaf = stem.rpartition(".")
    if leaf.startswith("structured_"):
        return owner, "structured_", leaf.removeprefix("structured_")
    path, _, operation = owner.rpartition(".")
    return path, "structured", operation


def take_delta(
    model: nn.Module,
    rule: Rule,
    placement: Placement,
    head: str = "head",
    fixed: tuple[str, ...] = ("cls_token",),
    base: dict[str, Any] | None = None,
    buffers_before: Mapping[str, Tensor] | None = None,
) -> Delta:
    """Copies everything out of an SPT model that training changed.

    Args:
        buffers_before: `kept_buffers` of the backbone before training; those that differ now are in the delta. Without
            them it holds all.
    """
    delta = Delta({}, {}, {}, rule, placement, head, fixed, base or {})
    for name, module in model.named_modules():
        if isinstance(module, TunedLinear):
            for leaf, size in (("weight", module.in_features), ("bias", 1)):
                values, index = getattr(module, f"sparse_{leaf}"), getattr(module, f"sparse_{leaf}_index")
                if values is not None:
                    flat = index[0] * size + index[1] if leaf == "weight" else index[0]
                    delta.entries[separate_name(f"{name}.{leaf}")] = (flat.clone(), values.detach().clone().float())
    for name, parameter in model.named_parameters():
        if ".structured.learnable." in name:
            delta.modules[released_key(name)] = parameter.detach().clone()
        elif parameter.requires_grad and not name.endswith((".sparse_weight", ".sparse_bias")):
            delta.tensors[separate_name(name)] = parameter.detach().clone()
    for name, value in kept_buffers(model).items():
        if head in name or buffers_before is None or not torch.equal(value.cpu(), buffers_before[name].cpu()):
            delta.tensors[name] = value.detach().clone()
    return delta


def kept_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of a model's state dict but for the places of entries: the running statistics of BatchNorms.

    No optimiser trains them, but every pass in training mode moves them, those of a frozen backbone as well.
    """
    kept = model.state_dict(keep_vars=True).keys()
    own = ((name, value) for name, value in model.named_buffers() if name in kept)
    return {name: value for name, value in own if not name.endswith(("sparse_weight_index", "sparse_bias_index"))}


def selection_of(delta: Delta, model: nn.Module) -> Selection:
    """The selection that rebuilds the delta's model; shapes are those of `model` (plain or SPT).

    Raises:
        UserError: when the delta names what the model lacks, or a head of another class count.
    """
    candidates = find_candidates(model, delta.head, delta.fixed)
    shapes = candidates.shapes()
    buffers = kept_buffers(model)
    own = {separate_name(name): value for name, value in model.named_parameters()} | buffers
    vectors = []
    for name, value in delta.tensors.items():
        if name in shapes:
            vectors.append(name)
        elif name not in own:
            raise UserError(
                f"the delta is of another architecture: it names {name}, which {type(model).__name__} lacks"
            )
        if (wanted := shapes.get(name, own[name].shape if name in own else None)) != value.shape:
            what = "class counts differ" if delta.head in name else "the delta is of another architecture"
            raise UserError(f"{what}: {name} is {list(value.shape)} in the delta, {list(wanted or [])} in the model")
    always = [separate_name(name) for name in candidates.always] + [name for name in buffers if delta.head in name]
    lost = [name for name in always if name not in delta.tensors]
    if lost:
        raise UserError(f"the delta lacks {', '.join(lost)}; a delta without its head is not complete")
    entries = {name: index.long() for name, (index, _) in delta.entries.items()}
    return Selection(delta.module_matrices(), vectors, entries, shapes, delta.rule)


@torch.no_grad()
def put_delta(model: nn.Module, delta: Delta) -> None:
    """Writes a delta's values into an SPT model that was built from its selection.

    Raises:
        UserError: naming keys that either side lacks.
    """
    own: dict[str, Tensor] = {released_key(name): parameter for name, parameter in model.named_parameters()}
    own |= kept_buffers(model)
    values: dict[str, Tensor] = {**delta.modules, **delta.tensors}
    for name, (_, entries) in delta.entries.items():
        stem, _, leaf = name.rpartition(".")
        values[f"{stem}.sparse_{leaf}"] = entries
    trained = {released_key(name) for name, p in model.named_parameters() if p.requires_grad}
    # Entries of LayerNorm are counted but never trained, so they are in neither.
    if missing := sorted(trained - set(values)):
        raise UserError(f"the delta lacks {', '.join(missing[:5])}")
    if unknown := sorted(set(values) - set(own)):
        raise UserError(f"the model lacks {', '.join(unknown[:5])} of the delta")
    for name, value in values.items():
        if own[name].shape != value.shape:
            raise UserError(f"{name} is {list(value.shape)} in the delta, {list(own[name].shape)} in the model")
        own[name].copy_(value)


def save_delta(folder: str | Path, delta: Delta, card: str = "") -> None:
    """Writes the three files, each whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {**delta.modules, **delta.tensors}
    for name, (index, values) in delta.entries.items():
        state[f"{name}.sparse_index"], state[f"{name}.sparse_values"] = index.int(), values.float()
    save_weights(folder / WEIGHTS, state, {"format": "pt"})
    config = {
        "peft_type": "SPT",
        "task_type": "FEATURE_EXTRACTION",
        "rule": asdict(delta.rule),
        "placement": asdict(delta.placement),
        "head": delta.head,
        "fixed": list(delta.fixed),
        "base_model": delta.base,
        **delta.extra,
    }
    write_atomic(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    write_atomic(folder / CARD, card or make_card(delta))


def load_delta(folder: str | Path) -> Delta:
    """Reads a folder that `save_delta` wrote.

    Raises:
        UserError: for a missing or damaged file, or keys that are not a delta's.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"no delta in {folder}: {name} is missing")
    try:
        config = json.loads((folder / CONFIG).read_text())
        if config["peft_type"] != "SPT":
            raise UserError(f"{folder / CONFIG} is of peft type {config['peft_type']}, not SPT")
        rule, placement = Rule(**config["rule"]), Placement(**config["placement"])
        head, fixed, base = config["head"], tuple(config["fixed"]), config["base_model"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG} is no SPT config: {error}") from error
    known = {"peft_type", "task_type", "rule", "placement", "head", "fixed", "base_model"}
    delta = Delta({}, {}, {}, rule, placement, head, fixed, base, {k: v for k, v in config.items() if k not in known})
    state = read_weights(folder / WEIGHTS)
    for name, value in state.items():
        if name.endswith(".sparse_values"):
            stem = name.removesuffix(".sparse_values")
            index = state.get(f"{stem}.sparse_index")
            if index is None or index.shape != value.shape or index.dtype != torch.int32:
                raise UserError(f"{folder / WEIGHTS}: {stem} has values without a fitting int32 index")
            delta.entries[stem] = (index, value)
        elif name.endswith(".sparse_index"):
            if f"{name.removesuffix('.sparse_index')}.sparse_values" not in state:
                raise UserError(f"{folder / WEIGHTS}: {name} has no values beside it")
        elif ".learnable." in name:
            delta.modules[name] = value
        else:
            delta.tensors[name] = value
    return delta


def make_card(delta: Delta) -> str:
    """A model card: what it is, what it holds, how to load it, what it is not."""
    entries = sum(index.numel() for index, _ in delta.entries.values())
    others = (delta.head, *delta.fixed, "running_", "num_batches_tracked")
    vectors = sum(1 for name in delta.tensors if not any(word in name for word in others))
    return (
        "---\nlibrary_name: spt\ntags: [parameter-efficient-fine-tuning, SPT]\n---\n\n# SPT delta\n\n"
        "What was tuned on one task, to be put on its frozen backbone "
        f"(`{delta.base.get('model', 'unknown')}`, weights `{delta.base.get('weights', 'unknown')}`).\n\n"
        f"- {len(delta.module_matrices())} modules ({delta.rule.structured_type}, rank {delta.rule.rank}), {vectors} "
        f"whole vectors, {entries:,} single entries, and the head\n- {delta.nbytes():,} bytes of tensors\n\n"
        "```python\nfrom spt import SPTModel\n\nmodel = SPTModel.from_pretrained(backbone, FOLDER)\n```\n\n"
        "## Limits\n\nIt changes the named parameters only, and is worth nothing on another backbone: the "
        "fingerprint is checked on loading. Accuracy holds for the task it was tuned on.\n"
    )
