"""What happens to weights that a step's architecture does not use.

Slices of a used tensor always get zero gradients, so AdamW decays them and moves them by their momentum. Whole unused
tensors, those of deeper layers, are a choice:

- `decay`, the released code's (torch 1.7 set gradients to zero): treated like unused slices.
- `skip`, torch's of today (gradients set to None): left alone until they are used again.

In both, a tensor that no step has used yet is neither decayed nor moved, and its step count starts with its first use.
"""

from typing import Literal

import torch
from torch.optim import Optimizer

Unsampled = Literal["decay", "skip"]


def clear_gradients(optimizer: Optimizer, unsampled: Unsampled = "decay") -> None:
    """Call before the backward pass of a step, in place of `optimizer.zero_grad`.

    Used before is what has an optimiser state: it is saved with a run, so a resumed one goes on alike.
    """
    optimizer.zero_grad(set_to_none=unsampled == "skip")
    if unsampled == "decay":
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None and optimizer.state.get(parameter):
                    parameter.grad = torch.zeros_like(parameter)
