"""Many tuned tasks on one backbone in memory: switching by exact save and restore.

The backbone stays a plain timm model. Activating a delta writes its entries, vectors, class token, head, statistics
and folded LoRA products into the weights, after the old bits were put aside; leaving it puts them back. Nothing is ever
subtracted, so after any number of switches the backbone is bit for bit itself. Matrices that a LoRA was folded into are
kept a second time. Adapters, which do not fold, run as forward hooks.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from spt.method.candidates import Candidate, find_candidates
from spt.method.sensitivity import model_identity
from spt.method.structured import StructuredModule
from spt.models.delta import Delta, kept_buffers


class HotSwap:
    """One plain backbone and the deltas that can be applied to it, one at a time.

    Args:
        model: plain timm model (fused qkv), head of any class count.
        head: substring of the classifier's names.
    """

    def __init__(self, model: nn.Module, head: str = "head") -> None:
        self.model = model.eval().requires_grad_(False)
        self.identity = model_identity(model, head)
        self.deltas: dict[str, Delta] = {}
        self.active: str | None = None
        self._candidates: dict[str, Candidate] = {}
        self._pristine: dict[str, Tensor] = {}  # matrices that some delta folded a LoRA into
        self._modules: dict[tuple[int, str], tuple[StructuredModule, bool]] = {}
        self._undo: list[tuple[Tensor, tuple[Tensor, ...] | None, Tensor]] = []
        self._hooks: list[Any] = []
        self._heads: list[tuple[str, nn.Parameter]] = []

    def add(self, name: str, delta: Delta, check_weights: bool = True) -> None:
        """Registers a delta.

        Raises:
            UserError: for a name in use, or a delta of another backbone.
        """
        if name in self.deltas:
            raise UserError(f"a delta named {name} is already there")
        for key in ("architecture", "weights") if check_weights else ("architecture",):
            if delta.base.get(key) != self.identity[key]:
                raise UserError(
                    f"delta {name} is of a backbone with {key} {delta.base.get(key)}; this one has {self.identity[key]}"
                )
        self.deltas[name] = delta

    @torch.no_grad()
    def switch(self, name: str | None) -> nn.Module:
        """Applies the delta of this name (None: the bare backbone) and returns the model.

        Raises:
            UserError: for a name that was not added.
        """
        if name is not None and name not in self.deltas:
            raise UserError(f"no delta named {name}; there are {', '.join(self.deltas) or 'none'}")
        if name == self.active:
            return self.model
        self._restore()
        self.active = name
        if name is not None:
            self._apply(self.deltas[name])
        return self.model

    def _restore(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for target, index, kept in reversed(self._undo):
            if index is None:
                target.copy_(kept)
            else:
                target.index_put_(index, kept)
        for path, parameter in self._heads:
            owner, _, leaf = path.rpartition(".")
            setattr(self.model.get_submodule(owner), leaf, parameter)
        self._hooks, self._undo, self._heads = [], [], []

    def _apply(self, delta: Delta) -> None:
        own: dict[str, Any] = dict(self.model.named_parameters())
        buffers = kept_buffers(self.model)
        if not self._candidates:
            self._candidates = {item.name: item for item in find_candidates(self.model, delta.head, delta.fixed)}
        for name, value in delta.tensors.items():
            if delta.head in name and name in own:  # replaced as a whole: tasks have different class counts
                self._heads.append((name, own[name]))
                owner, _, leaf = name.rpartition(".")
                setattr(self.model.get_submodule(owner), leaf, nn.Parameter(value.to(own[name]), requires_grad=False))
            elif name in self._candidates:
                item = self._candidates[name]
                self._write(item.view(own[item.holder]), None, value)
            else:
                self._write(buffers[name] if name in buffers else own[name], None, value)
        for matrix in delta.module_matrices():
            self._add_module(delta, matrix, own)
        # After the modules, so that what is kept of a matrix is the backbone's.
        for name, (flat, values) in delta.entries.items():
            item = self._candidates[name]
            view = item.view(own[item.holder])
            columns = view.shape[1] if view.ndim == 2 else 1
            index = (flat.long() // columns, flat.long() % columns) if view.ndim == 2 else (flat.long(),)
            self._write(view, index, view[index] + values.to(view))

    def _write(self, target: Tensor, index: tuple[Tensor, ...] | None, value: Tensor) -> None:
        """Puts the old bits aside and writes."""
        if index is None:
            self._undo.append((target, None, target.clone()))
            target.copy_(value)
        else:
            self._undo.append((target, index, target[index]))
            target.index_put_(index, value)

    def _add_module(self, delta: Delta, matrix: str, own: dict[str, nn.Parameter]) -> None:
        item = self._candidates[matrix]
        view = item.view(own[item.holder])
        key = (id(delta), matrix)
        if key not in self._modules:
            module, parallel = _rebuild(delta, matrix, item)
            self._modules[key] = module.to(view), parallel
        module, parallel = self._modules[key]
        if module.mergeable:
            # The old bits of a folded matrix are the backbone's own for ever, so they are copied once.
            if matrix not in self._pristine:
                self._pristine[matrix] = view.clone()
            self._undo.append((view, None, self._pristine[matrix]))
            view.addmm_(module.up.weight, module.down.weight)
            if module.up.bias is not None and (bias := self._candidates.get(f"{matrix.removesuffix('weight')}bias")):
                target = bias.view(own[bias.holder])
                self._write(target, None, target + module.up.bias)
            return
        linear = self.model.get_submodule(item.holder.rpartition(".")[0])
        self._hooks.append(linear.register_forward_hook(_adapter_hook(module, parallel, item)))


def _adapter_hook(module: StructuredModule, parallel: bool, item: Candidate) -> Callable[..., Tensor]:
    """Adds the adapter's output to its rows of the Linear's output (a fused qkv has three owners)."""
    rows = slice(item.start, item.start + item.shape[0])

    def add(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        output = output.clone()
        output[..., rows] += module(inputs[0] if parallel else output[..., rows])
        return output

    return add


def _rebuild(delta: Delta, matrix: str, item: Candidate) -> tuple[StructuredModule, bool]:
    """The structured module on `matrix` with its weights, and whether it stands in parallel."""
    owner, operation, _ = matrix.rsplit(".", 2)
    stems = (f"{owner}.structured_{operation}.learnable.", f"{owner}.{operation}.structured.learnable.")
    state = {
        f"learnable.{key.removeprefix(stem)}": value
        for stem in stems
        for key, value in delta.modules.items()
        if key.startswith(stem)
    }
    parallel = operation == "proj" or delta.placement.block == "parallel"
    width = item.shape[1] if parallel else item.shape[0]
    kind, bias = delta.rule.structured_type, delta.rule.structured_vector
    module = StructuredModule(width, item.shape[0], delta.rule.rank, kind, bias)  # type: ignore[arg-type]
    module.load_state_dict(state)
    return module.requires_grad_(False), parallel
