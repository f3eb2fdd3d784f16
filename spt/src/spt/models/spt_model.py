"""SPT in peft's manner: a config, `get_spt_model`, and the verbs that its users know."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from spt.method.allocation import Rule, Selection
from spt.method.budget import exact_selection, official_selections
from spt.method.candidates import find_candidates
from spt.method.probe import refuse, unreached
from spt.method.sensitivity import Sensitivities, model_identity
from spt.method.structured import Init
from spt.method.tuned_linear import TunedLinear
from spt.method.tuning import Placement, Spent, apply_selection, count_trained, merge, optimizer_groups, strip
from spt.models.delta import Delta, kept_buffers, load_delta, put_delta, save_delta, selection_of, take_delta


@dataclass
class SPTConfig:
    """Everything that decides an SPT model but the sensitivities.

    Attributes:
        budget: counted trainable parameters, head not among them (class token is).
        structured_type: `lora`, `adapter`, `lora_bias`, or `none` for single entries only.
        r: rank of every module.
        alpha: a matrix gets a module of K parameters from K / alpha marks on (10 as released; 1 is budget-neutral).
        beta: a vector is trained whole from a share 1 / beta of marks on.
        structured_vector: train vectors whole at all.
        structured_only: no single entries.
        search: `exact` spends the most within the budget; `official` is the released sweep.
        block: `parallel` or `sequential`; None takes the released one (sequential for adapters).
        init: `zero` starts at the pre-trained function, `official` does not (see the README).
        drop, drop_path: on a module's input and output in training.
        head: substring of the classifier's parameter names; always trained and saved.
        fixed: substrings of other parameters that are always trained.
    """

    budget: int = 400_000
    structured_type: Literal["lora", "adapter", "lora_bias", "none"] = "lora"
    r: int = 8
    alpha: float = 10.0
    beta: float = 5.0
    structured_vector: bool = True
    structured_only: bool = False
    search: Literal["exact", "official"] = "exact"
    block: Literal["parallel", "sequential"] | None = None
    init: Init = "zero"
    drop: float = 0.1
    drop_path: float = 0.1
    head: str = "head"
    fixed: tuple[str, ...] = ("cls_token",)

    def placement(self) -> Placement:
        """Where modules stand."""
        block = self.block or ("sequential" if self.structured_type == "adapter" else "parallel")
        return Placement(block, self.init, self.drop, self.drop_path)

    def rule(self, model: nn.Module) -> Rule:
        """The allocation rule; `fixed` parameters are counted on `model`."""
        fixed = sum(
            p.numel()
            for n, p in model.named_parameters()
            if any(word in n for word in self.fixed) and self.head not in n
        )
        return Rule(
            self.structured_type, self.r, self.alpha, self.beta, self.structured_vector, self.structured_only, fixed
        )


def choose(model: nn.Module, config: SPTConfig, sensitivities: Sensitivities | Mapping[str, Tensor]) -> Selection:
    """Allocates the budget on `model`.

    Raises:
        UserError: for sensitivities of another model, an impossible budget, or no official selection near it.
    """
    values = dict(sensitivities.values if isinstance(sensitivities, Sensitivities) else sensitivities)
    shapes = find_candidates(model, config.head, config.fixed).shapes()
    if {n: v.shape for n, v in values.items()} != shapes:
        odd = sorted(set(values) ^ set(shapes)) or [n for n in shapes if values[n].shape != shapes[n]]
        raise UserError(f"the sensitivities are of another architecture: they differ in {', '.join(odd[:3])}")
    if isinstance(sensitivities, Sensitivities) and sensitivities.identity:
        mine = model_identity(model, config.head)
        if mine["weights"] != sensitivities.identity.get("weights"):
            raise UserError(
                f"the sensitivities were measured on other weights ({sensitivities.identity.get('weights')}) than this "
                f"model's ({mine['weights']}); measure them again"
            )
    rule = config.rule(model)
    if config.search == "exact":
        return exact_selection(values, rule, config.budget)
    found = official_selections(values, rule, budgets=(config.budget / 1e6,))
    if not found:
        raise UserError(
            f"the released sweep has no total near {config.budget}; search exact finds the nearest below it"
        )
    return next(iter(found.values()))[1]


class SPTModel(nn.Module):
    """A tuned backbone with peft's verbs. Calls go to the backbone.

    Attributes:
        base: the backbone, frozen but for what was chosen.
        selection: what was chosen.
        config: how.
        identity: of the backbone before tuning.
    """

    def __init__(
        self, model: nn.Module, config: SPTConfig, selection: Selection, placement: Placement | None = None
    ) -> None:
        super().__init__()
        self.config, self.selection = config, selection
        self.identity = model_identity(model, config.head)
        self.placement = placement or config.placement()
        # Whole tensors that training overwrites in place; kept so that `unload` and `disable_adapter` can give them
        # back.
        self._before = {n: p.detach().clone() for n, p in _overwritten(model, selection, config)}
        self._buffers_before = {name: value.clone() for name, value in kept_buffers(model).items()}
        self._probed = False
        self.base = apply_selection(model, selection, self.placement, config.head, config.fixed)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Calls the backbone.

        Raises:
            UserError: in the first training step, if something that is trained would get no gradient.
        """
        output = self.base(*inputs, **named)
        if self.training and not self._probed and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            refuse(self.base, unreached(self.base, output))
            self._probed = True
        return output

    def spent(self) -> Spent:
        """Parameters really trained, of the head, and of the whole model."""
        return count_trained(self.base, self.config.head)

    def print_trainable_parameters(self) -> str:
        """Prints and returns one line: counted against the budget, really trained, head, share of the model."""
        spent = self.spent()
        line = (
            f"budget {self.config.budget:,} || counted {self.selection.counted:,} || trained {spent.trained:,} || "
            f"head {spent.head:,} || all {spent.total:,} || trained% {100 * spent.trained / spent.total:.4f}"
        )
        print(line)
        return line

    def optimizer_groups(self, weight_decay: float = 1e-4) -> list[dict]:
        """Parameter groups as released."""
        return [{k: v for k, v in g.items() if k != "names"} for g in optimizer_groups(self.base, weight_decay)]

    def delta(self) -> Delta:
        """Everything trained, copied."""
        return take_delta(
            self.base,
            self.selection.rule,
            self.placement,
            self.config.head,
            self.config.fixed,
            dict(self.identity),
            self._buffers_before,
        )

    def save_pretrained(self, folder: str | Path, card: str = "") -> None:
        """Writes the delta in peft's layout; the head is always in it."""
        delta = self.delta()
        delta.extra = {"spt_config": {**asdict(self.config), "fixed": list(self.config.fixed)}}
        save_delta(folder, delta, card)

    @classmethod
    def from_pretrained(cls, model: nn.Module, folder: str | Path, check_weights: bool = True) -> "SPTModel":
        """Puts a saved delta on its backbone.

        Args:
            model: plain backbone with the delta's class count.
            check_weights: refuse a backbone whose weights have another fingerprint.

        Raises:
            UserError: for a damaged folder, another backbone, another class count, or missing keys.
        """
        delta = load_delta(folder)
        mine = model_identity(model, delta.head)
        for key in ("architecture", "weights") if check_weights else ("architecture",):
            if delta.base.get(key) != mine[key]:
                raise UserError(
                    f"{folder} belongs to a backbone with {key} {delta.base.get(key)}; this one has {mine[key]}"
                )
        saved = dict(delta.extra.get("spt_config", {}))
        saved["fixed"] = tuple(saved.get("fixed", delta.fixed))
        tuned = cls(model, SPTConfig(**saved), selection_of(delta, model), delta.placement)
        put_delta(tuned.base, delta)
        return tuned

    def merge_and_unload(self) -> nn.Module:
        """A plain model that computes the same in evaluation; this object must not be used afterwards.

        Raises:
            UserError: for adapters.
        """
        return merge(self.base).requires_grad_(True)

    def unload(self) -> nn.Module:
        """The backbone as it was, bit for bit; this object must not be used afterwards."""
        self._swap_whole_tensors()
        return strip(self.base).requires_grad_(True)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside, the model is the backbone before tuning (its old head included)."""
        tuned = [module for module in self.base.modules() if isinstance(module, TunedLinear)]
        self._swap_whole_tensors()
        for module in tuned:
            module.enabled = False
        try:
            yield
        finally:
            for module in tuned:
                module.enabled = True
            self._swap_whole_tensors()

    def _swap_whole_tensors(self) -> None:
        own = dict(self.base.named_parameters())
        for name, kept in self._before.items():
            parameter = own[_split_names(name, own)]
            now = parameter.detach().clone()
            parameter.data.copy_(kept)
            self._before[name] = now
        own_buffers = kept_buffers(self.base)
        for name, kept in self._buffers_before.items():
            now = own_buffers[name].clone()
            own_buffers[name].copy_(kept)
            self._buffers_before[name] = now


def _overwritten(model: nn.Module, selection: Selection, config: SPTConfig) -> Iterator[tuple[str, Tensor]]:
    """(separate name, tensor) of vectors, class token and head, which training overwrites."""
    candidates = find_candidates(model, config.head, config.fixed)
    own = dict(model.named_parameters())
    chosen = set(selection.vectors)
    for item in candidates:
        if item.name in chosen and item.holder in own:
            yield item.name, item.view(own[item.holder])
    for name in candidates.always:
        yield name, own[name]


def _split_names(name: str, own: Mapping[str, Tensor]) -> str:
    """The name after the split of qkv: `attn.q.bias` -> `attn.qkv.q.bias` where only that exists."""
    if name in own:
        return name
    path, part, leaf = name.rsplit(".", 2)
    return f"{path}.qkv.{part}.{leaf}"


def get_spt_model(
    model: nn.Module,
    config: SPTConfig,
    sensitivities: Sensitivities | Mapping[str, Tensor] | Selection,
    copy_model: bool = False,
) -> "SPTModel":
    """Allocates the budget and makes `model` an SPT model (in place unless `copy_model`).

    Args:
        sensitivities: of `spt.measure_sensitivities` on this very model, or a finished selection (a released
            file).

    Raises:
        UserError: see `choose` and `spt.method.tuning.apply_selection`.
    """
    selection = sensitivities if isinstance(sensitivities, Selection) else choose(model, config, sensitivities)
    return SPTModel(copy.deepcopy(model) if copy_model else model, config, selection)
