"""The arms of the embedded experiment: each takes the same backbone and trains at most the same number of parameters.

An arm takes the largest setting that stays within the budget, and says what it spends.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.data.seeding import seed_of
from spt.experiment import peft_arms
from spt.method.allocation import Rule, Selection
from spt.method.budget import exact_selection
from spt.method.candidates import find_candidates
from spt.method.tuning import Placement, apply_selection
from spt.models.baselines import add_bottlenecks, add_prompts
from spt.models.selection_file import operation_name

Values = dict[str, Tensor]


@dataclass
class Arm:
    """A model ready to be tuned.

    Attributes:
        model: frozen but for what the arm trains.
        spent: trained parameters beside head and class token.
        after_step: called with the number of finished steps (AdaLoRA allocates its ranks there).
        selection: of the arms that have one.
    """

    model: nn.Module
    spent: int
    after_step: Callable[[int], None] = lambda done: None
    selection: Selection | None = None


@dataclass
class Setting:
    """What all arms of one seed and task share.

    Attributes:
        backbone: pre-trained plain model with the task's fresh head; never changed.
        values: sensitivities of one random head.
        values_of_heads: summed over four random heads; empty when no arm needs them.
        budget: parameters beside head and class token.
        steps: of tuning (AdaLoRA's schedule needs it).
        seed: of everything random in an arm.
    """

    backbone: nn.Module
    values: Values
    values_of_heads: Values
    budget: int
    steps: int
    seed: int

    def matrices(self) -> list[str]:
        """Names of the Linear weights."""
        return [name for name, value in self.values.items() if value.ndim == 2]

    def generator(self, *parts: int) -> torch.Generator:
        """A random stream of this seed."""
        return torch.Generator().manual_seed(seed_of(self.seed, *parts))


def build_arm(name: str, setting: Setting) -> Arm:
    """The arm of this name (see `spt.experiment.settings.ARMS`)."""
    torch.manual_seed(seed_of(setting.seed, 3))  # of modules that start at random
    arm = BUILDERS[name](setting)
    for parameter_name, parameter in arm.model.named_parameters():
        if "cls_token" in parameter_name or ("head" in parameter_name and "original_module" not in parameter_name):
            parameter.requires_grad_(True)
    return arm


# --- single entries ----------------------------------------------------------------------------------------------


def _entries(setting: Setting, scores: Values) -> Arm:
    """Top entries among Linear weights alone, as a larger trial decided."""
    chosen = {name: scores[name] for name in setting.matrices()}
    selection = exact_selection(chosen, Rule("none", fixed=0), setting.budget)
    return _ours(setting, selection)


def _ours(setting: Setting, selection: Selection, placement: Placement | None = None) -> Arm:
    model = copy.deepcopy(setting.backbone)
    apply_selection(model, selection, placement or Placement(drop=0.0, drop_path=0.0))
    return Arm(model, selection.counted, selection=selection)


def _random(setting: Setting) -> Arm:
    draw = setting.generator(5)
    return _entries(setting, {name: torch.rand(value.shape, generator=draw) for name, value in setting.values.items()})


def _least(setting: Setting) -> Arm:
    largest = max(float(value.max()) for value in setting.values.values())
    return _entries(setting, {name: largest - value for name, value in _distinct(setting.values).items()})


def _distinct(values: Values) -> Values:
    """In float64, where a tiny value still changes `largest - value`."""
    return {name: value.double() for name, value in values.items()}


def _magnitude(setting: Setting) -> Arm:
    weights = {
        item.name: item.view(dict(setting.backbone.named_parameters())[item.holder])
        for item in find_candidates(setting.backbone)
    }
    return _entries(setting, {name: value.detach().abs() for name, value in weights.items()})


# --- allocation --------------------------------------------------------------------------------------------------


def _spt(setting: Setting, values: Values, kind: str = "lora") -> Arm:
    selection = exact_selection(values, Rule(kind, 1, fixed=0), setting.budget)  # type: ignore[arg-type]
    block = "sequential" if kind == "adapter" else "parallel"
    return _ours(setting, selection, Placement(block, drop=0.0, drop_path=0.0))  # type: ignore[arg-type]


def wrong_places(values: Values, draw: torch.Generator) -> Values:
    """Sensitivities shuffled inside each tensor, and tensors of equal shape exchanged: the same structure elsewhere."""
    by_shape: dict[torch.Size, list[str]] = {}
    for name, value in values.items():
        by_shape.setdefault(value.shape, []).append(name)
    out = {}
    for shape, names in by_shape.items():
        dealt = torch.randperm(len(names), generator=draw).tolist()
        for name, other in zip(names, dealt, strict=True):
            flat = values[names[other]].flatten()
            out[name] = flat[torch.randperm(flat.numel(), generator=draw)].reshape(shape)
    return {name: out[name] for name in values}


def _uniform(setting: Setting, places: list[str], kind: str) -> Arm:
    """Modules of rank 1 on these matrices, in this order, as far as the budget goes."""
    rule = Rule(kind, 1, fixed=0)  # type: ignore[arg-type]
    shapes = {name: value.shape for name, value in setting.values.items()}
    chosen: list[str] = []
    for name in places:
        if sum(rule.cost(shapes[one]) for one in [*chosen, name]) <= setting.budget:
            chosen.append(name)
    block = "sequential" if kind == "adapter" else "parallel"
    placement = Placement(block, drop=0.0, drop_path=0.0)  # type: ignore[arg-type]
    return _ours(setting, Selection(chosen, [], {}, shapes, rule), placement)


def _places(setting: Setting, *operations: str) -> list[str]:
    """Names of these operations' matrices, the last blocks first within an operation."""
    depth = 1 + max(int(name.split(".")[1]) for name in setting.matrices())
    return [operation_name(block, operation) for operation in operations for block in reversed(range(depth))]


def _bitfit(setting: Setting) -> Arm:
    shapes = {name: value.shape for name, value in setting.values.items()}
    wanted = [name for name in shapes if name.endswith((".q.bias", ".fc1.bias"))]
    while sum(shapes[name].numel() for name in wanted) > setting.budget:
        wanted.pop(0)
    return _ours(setting, Selection([], wanted, {}, shapes, Rule(fixed=0)))


def _linear(setting: Setting) -> Arm:
    shapes = {name: value.shape for name, value in setting.values.items()}
    return _ours(setting, Selection([], [], {}, shapes, Rule(fixed=0)))


def _full(setting: Setting) -> Arm:
    model = copy.deepcopy(setting.backbone)
    head = sum(p.numel() for n, p in model.named_parameters() if "head" in n or "cls_token" in n)
    return Arm(model, sum(p.numel() for p in model.parameters()) - head)


def _depth_and_width(model: Any) -> tuple[int, int]:
    return len(model.blocks), int(model.embed_dim)


def _vpt(setting: Setting) -> Arm:
    model = copy.deepcopy(setting.backbone)
    depth, width = _depth_and_width(model)
    count = setting.budget // (depth * width)
    return Arm(add_prompts(model, count), count * depth * width)


def _adaptformer(setting: Setting) -> Arm:
    model = copy.deepcopy(setting.backbone)
    depth, width = _depth_and_width(model)
    rank = (setting.budget // depth - width) // (2 * width + 1)
    return Arm(add_bottlenecks(model, rank), depth * (2 * width * rank + rank + width))


# --- HF peft -----------------------------------------------------------------------------------------------------


def _peft(setting: Setting, build: Callable[..., tuple[nn.Module, int]], **options: Any) -> Arm:
    """An arm of `spt.experiment.peft_arms`, which takes the first of v, q and proj that fit the budget."""
    shapes = {name: setting.values[name].shape for name in _places(setting, "v", "q", "proj")}
    return Arm(*build(setting.backbone, shapes, setting.budget, **options))


def _adalora(setting: Setting) -> Arm:
    arm = _peft(setting, peft_arms.adalora, steps=setting.steps)
    inner = arm.model.base_model
    arm.after_step = lambda done: inner.update_and_allocate(done)  # type: ignore[operator, union-attr]
    return arm


def _supertuning(setting: Setting) -> Arm:
    shapes = {name: setting.values[name].shape for name in setting.matrices()}
    return Arm(*peft_arms.supertuning(setting.backbone, shapes, setting.budget))


BUILDERS: dict[str, Callable[[Setting], Arm]] = {
    "sensitive entries": lambda s: _entries(s, s.values),
    "sensitive entries, 4 heads": lambda s: _entries(s, s.values_of_heads),
    "random entries": _random,
    "least sensitive entries": _least,
    "largest magnitude": _magnitude,
    "SPT-LoRA": lambda s: _spt(s, s.values),
    "SPT-Adapter": lambda s: _spt(s, s.values, "adapter"),
    "SPT-LoRA, wrong places": lambda s: _spt(s, wrong_places(s.values, s.generator(11))),
    "LoRA on q, v": lambda s: _uniform(s, _places(s, "v", "q"), "lora"),
    "Adapter": lambda s: _uniform(s, _places(s, "fc2", "proj"), "adapter"),
    "AdaptFormer": _adaptformer,
    "VPT-Deep": _vpt,
    "BitFit (q, fc1)": _bitfit,
    "peft LoRA": lambda s: _peft(s, peft_arms.lora),
    "peft DoRA": lambda s: _peft(s, peft_arms.lora, dora=True),
    "peft AdaLoRA": _adalora,
    "peft SHiRA, sensitive mask": lambda s: _peft(s, peft_arms.shira, seed=s.seed, scores=s.values),
    "peft SHiRA, random mask": lambda s: _peft(s, peft_arms.shira, seed=s.seed),
    "peft Supertuning": _supertuning,
    "linear probe": _linear,
    "full fine-tuning": _full,
}
