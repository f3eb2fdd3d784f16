"""timm's fused `qkv` Linear as three Linears and back: the paper selects on separate q, k and v.

`SplitQKV` takes the place of `attn.qkv` and returns the same concatenation, so that every attention of timm that
calls `self.qkv(x)` (ViT, Swin and their kin) works unchanged.
"""

from typing import Any

import torch
from torch import Tensor, nn

from spt.method.candidates import QKV, is_fused_qkv
from spt.method.sparse import Places, frozen_linear
from spt.method.tuned_linear import TunedLinear


class SplitQKV(nn.Module):
    """q, k and v as three Linears; (B, N, C) -> (B, N, 3C) in the order of the fused layer.

    Their weights lie one behind the other in memory, so that the three products still run as one.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        weights = fused.weight.detach().clone().chunk(3)
        biases = fused.bias.detach().clone().chunk(3) if fused.bias is not None else None
        for index, part in enumerate(QKV):
            linear = nn.Linear(fused.in_features, fused.out_features // 3, biases is not None, device="meta")
            # `.data`: writing one of them (and putting its bits back) must not look like a change of the others.
            linear.weight = nn.Parameter(weights[index].data)
            if biases is not None:
                linear.bias = nn.Parameter(biases[index].data)
            self.add_module(part, linear)
        self.shared_drop = nn.Dropout(0.0)  # one draw for the modules of q, k and v
        self._places: tuple[Any, Any, Places] | None = None

    @property
    def parts(self) -> list[nn.Linear | TunedLinear]:
        """The three layers in order."""
        return [self.get_submodule(part) for part in QKV]  # type: ignore[misc]

    @property
    def weight(self) -> Tensor:
        """The fused weight, tuning included: BEiT and its kin multiply by it themselves, others read its type."""
        return torch.cat([part.read_weight() if isinstance(part, TunedLinear) else part.weight for part in self.parts])

    def _apply(self, *arguments: Any, **named: Any) -> "SplitQKV":
        """Moving or converting gives every weight a memory of its own; afterwards they are joined again."""
        super()._apply(*arguments, **named)
        self.join()
        return self

    @torch.no_grad()
    def join(self) -> None:
        """Puts the three weights one behind the other in memory, unless one is trained or they lie so already."""
        weights = [part.weight for part in self.parts]
        if not any(weight.requires_grad for weight in weights) and self.joined() is None:
            for weight, piece in zip(weights, torch.cat([w.detach() for w in weights]).chunk(3), strict=True):
                weight.data = piece

    def joined(self) -> Tensor | None:
        """The three frozen weights as one view (3 O, I); None when they lie apart (after a deep copy, under FSDP)."""
        parts = self.parts
        if not all(type(part) in (nn.Linear, TunedLinear) and not part.weight.requires_grad for part in parts):
            return None
        first = parts[0].weight.data
        for index, part in enumerate(parts):
            here = part.weight
            beside = here.data_ptr() == first.data_ptr() + index * first.numel() * first.element_size()
            one = here.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
            if not (beside and one and here.is_contiguous() and here.shape == first.shape):
                return None
        return first.as_strided((3 * first.shape[0], first.shape[1]), first.stride())

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, 3C)."""
        parts = self.parts
        tuned = [part if isinstance(part, TunedLinear) and part.enabled else None for part in parts]
        modules = [part.structured if part else None for part in tuned]
        parallel = all(part.position == "parallel" for part in tuned if part and part.structured)
        dropped = self.shared_drop(x) if parallel and any(modules) else x
        joinable = parallel and all(module.kind == "lora" for module in modules if module)
        weight = self.joined() if joinable else None
        if weight is None:
            return torch.cat([p(x, dropped) if isinstance(p, TunedLinear) else p(x) for p in parts], dim=-1)
        biases = [part.tuned_bias() if isinstance(part, TunedLinear) else part.bias for part in parts]
        bias = None if any(b is None for b in biases) else torch.cat(biases)  # type: ignore[arg-type]
        values: list[Tensor] = [part.sparse_weight for part in tuned if part and part.sparse_weight is not None]
        added = [
            (index * weight.shape[0] // 3, *part.low_rank(dropped))
            for index, (part, module) in enumerate(zip(tuned, modules, strict=True))
            if part and module
        ]
        if not values:
            return frozen_linear(x, weight, bias, added=added)
        return frozen_linear(x, weight, bias, self._places_of(tuned), torch.cat(values), added)

    def _places_of(self, tuned: list[TunedLinear | None]) -> Places:
        """Where their entries stand in the joined weight; worked out again only when they changed."""
        kept = [
            (i * self.parts[0].out_features, part.sparse_weight_index)
            for i, part in enumerate(tuned)
            if part and part.sparse_weight_index is not None
        ]
        key = tuple((start, id(index), index._version) for start, index in kept)
        if self._places is None or self._places[0] != key:
            rows = torch.cat([index[0].long() + start for start, index in kept])
            # The tensors are held as well: the id of one that is gone could come again.
            self._places = key, kept, Places.of(rows, torch.cat([index[1] for _, index in kept]))
        return self._places[2]

    @torch.no_grad()
    def fused(self) -> nn.Linear:
        """One Linear that computes the same in evaluation; sparse entries and linear modules folded in."""
        weights, biases = [], []
        for part in self.parts:
            weights.append(part.merged_weight() if isinstance(part, TunedLinear) else part.weight.detach())
            bias = part.merged_bias() if isinstance(part, TunedLinear) else part.bias
            if bias is not None:
                biases.append(bias.detach())
        weight = torch.cat(weights)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bool(biases), device="meta")
        linear.weight = nn.Parameter(weight)
        if biases:
            linear.bias = nn.Parameter(torch.cat(biases))
        return linear


def split_qkv_layers(model: nn.Module) -> nn.Module:
    """Replaces every fused qkv of `model` in place; already split layers stay. Returns the model."""
    for name, module in list(model.named_modules()):
        if is_fused_qkv(name, module):
            model.set_submodule(name, SplitQKV(module))
    return model


def split_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a fused model -> keys of the separate model; thirds in the order q, k, v."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        stem, _, leaf = name.rpartition(".")
        if stem.endswith("qkv"):
            for part, piece in zip(QKV, value.chunk(3), strict=True):
                out[f"{stem.removesuffix('qkv')}{part}.{leaf}"] = piece
        else:
            out[name] = value
    return out


def fuse_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `split_state`: q, k and v of one layer concatenated under `qkv`.

    Raises:
        ValueError: if a layer has a query but lacks its key or value.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        stem, _, leaf = name.rpartition(".")
        owner, _, part = stem.rpartition(".")
        if part not in QKV or not owner.endswith("attn"):
            out[name] = value
        elif part == "q":
            names = [f"{owner}.{each}.{leaf}" for each in QKV]
            missing = [each for each in names if each not in state]
            if missing:
                raise ValueError(f"{name} has no {', '.join(missing)} beside it")
            out[f"{owner}.qkv.{leaf}"] = torch.cat([state[each] for each in names])
        elif f"{owner}.q.{leaf}" not in state:
            raise ValueError(f"{name} has no {owner}.q.{leaf} beside it")
    return out
