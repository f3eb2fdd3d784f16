"""A frozen Linear with what SPT adds to it: a module, chosen entries, a tuned bias (paper sections 3.3 and 3.4).

Shapes: B batch, N tokens, I input width, O output width, K chosen entries of the weight, L of the bias.
"""

from typing import Literal

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from spt.method.sparse import Places, frozen_linear
from spt.method.structured import Init, StructuredModule, StructuredType

Position = Literal["parallel", "sequential"]


class TunedLinear(nn.Module):
    """`y = W x + b` with W frozen, plus a structured module or chosen entries (the rule never gives both).

    A module in `parallel` position sees the Linear's input (LoRA, and everything on `proj`); in `sequential` position
    it sees the output: `y = z + module(drop(z))` (Adapter).

    Args:
        linear: the pre-trained Linear; its parameters are taken over, not copied, and frozen.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.structured: StructuredModule | None = None
        self.register_parameter("sparse_weight", None)
        self.register_parameter("sparse_bias", None)
        self.register_buffer("sparse_weight_index", None)  # int32 [2, K]: rows (output), columns (input)
        self.register_buffer("sparse_bias_index", None)  # int32 [1, L]
        self.position: Position = "parallel"
        self.drop = nn.Dropout(0.0)
        self.drop_path = DropPath(0.0)
        self.enabled = True
        self._places: tuple[Tensor, int, Places] | None = None

    def add_module_beside(
        self,
        kind: StructuredType,
        rank: int,
        position: Position = "parallel",
        bias: bool = True,
        init: Init = "zero",
        drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        """Puts a structured module beside the weight; `drop` acts on its input, `drop_path` on its output."""
        width = self.in_features if position == "parallel" else self.out_features
        module = StructuredModule(width, self.out_features, rank, kind, bias, init)
        self.structured = module.to(self.weight)
        self.position = position
        self.drop, self.drop_path = nn.Dropout(drop), DropPath(drop_path)

    def add_entries(self, parameter: Literal["weight", "bias"], flat: Tensor) -> None:
        """Makes the entries at the flat (row-major) indices of the weight or bias trainable, starting at no change."""
        values = nn.Parameter(torch.zeros(flat.numel(), dtype=self.weight.dtype, device=self.weight.device))
        if parameter == "weight":
            index = torch.stack([flat // self.in_features, flat % self.in_features])
            self.sparse_weight, self.sparse_weight_index = values, index.to(self.weight.device, torch.int32)
        else:
            self.sparse_bias, self.sparse_bias_index = values, flat[None].to(self.weight.device, torch.int32)

    def places(self) -> Places:
        """Where the chosen entries of the weight stand; worked out again only when the index buffer changed."""
        index = self.sparse_weight_index
        if self._places is None or self._places[0] is not index or self._places[1] != index._version:
            self._places = index, index._version, Places.of(*index)
        return self._places[2]

    def tuned_bias(self) -> Tensor | None:
        """Bias with its chosen entries added, (O,)."""
        if self.sparse_bias is None or not self.enabled:
            return self.bias
        return self.bias.index_add(0, self.sparse_bias_index[0], self.sparse_bias)

    def read_weight(self) -> Tensor:
        """W with what is linear in the input added, (O, I), for a model that reads the weight and never calls this.

        Gradients flow to entries and LoRA; dropout and drop path, which act on tokens, are not seen there. An adapter
        is no part of a weight.
        """
        weight = self.weight
        if self.enabled and self.sparse_weight is not None:
            row, col = self.sparse_weight_index.long()
            weight = weight.index_put((row, col), self.sparse_weight, accumulate=True)
        if self.enabled and self.structured is not None and self.structured.kind == "lora":
            weight = weight + self.structured.up.weight @ self.structured.down.weight
        return weight

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W with chosen entries and a linear module folded in, (O, I): a new tensor (section 3.4)."""
        weight = self.weight.detach().clone()
        if self.sparse_weight is not None:
            row, col = self.sparse_weight_index.long()
            weight[row, col] += self.sparse_weight
        if self.structured is not None and self.structured.mergeable:
            weight += self.structured.weight_delta()
        return weight

    @torch.no_grad()
    def merged_bias(self) -> Tensor | None:
        """Bias with chosen entries and a linear module's own bias folded in, (O,): a new tensor."""
        if self.bias is None:
            return None
        bias = self.bias.detach().clone()
        if self.sparse_bias is not None:
            bias[self.sparse_bias_index[0].long()] += self.sparse_bias
        if self.structured is not None and self.structured.mergeable and self.structured.up.bias is not None:
            bias += self.structured.up.bias
        return bias

    def forward(self, x: Tensor, dropped: Tensor | None = None) -> Tensor:
        """(..., I) -> (..., O).

        Args:
            dropped: the module's input when q, k and v share one draw of dropout; drawn here otherwise.
        """
        if not self.enabled:
            return F.linear(x, self.weight, self.bias)
        if self.sparse_weight is not None:
            return frozen_linear(x, self.weight, self.tuned_bias(), self.places(), self.sparse_weight)
        if self.structured is None:
            return F.linear(x, self.weight, self.tuned_bias())
        if self.position == "sequential":
            y = F.linear(x, self.weight, self.tuned_bias())
            return y + self.drop_path(self.structured(self.drop(y)))
        dropped = self.drop(x) if dropped is None else dropped
        if self.structured.kind != "lora" or self.weight.requires_grad:  # not linear, or someone tunes the weight too
            return F.linear(x, self.weight, self.tuned_bias()) + self.drop_path(self.structured(dropped))
        return frozen_linear(x, self.weight, self.tuned_bias(), added=[(0, *self.low_rank(dropped))])

    def low_rank(self, dropped: Tensor) -> tuple[Tensor, Tensor]:
        """What a LoRA adds, as factors (..., r) and (O, r). Drop path acts on the smaller one, which is the same."""
        assert self.structured is not None
        return self.drop_path(self.structured.down(dropped)), self.structured.up.weight

    def extra_repr(self) -> str:
        entries = 0 if self.sparse_weight is None else self.sparse_weight.numel()
        return f"in_features={self.in_features}, out_features={self.out_features}, entries={entries}"
