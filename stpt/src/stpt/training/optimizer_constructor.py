"""Rate and weight decay of each parameter, and mmengine's constructor that asks for them.

    optim_wrapper = dict(
        constructor="STPTGroups",
        paramwise_cfg=dict(backbone=0.1),
        optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
    )

The recipe chosen here for a transformer backbone: it learns at a tenth of the head's rate, and norm layers, biases
and the learned scales of the levels are not decayed. AFSD's recipe (Adam, one rate, everything decayed) is mmengine's
own constructor, without any of this.
"""

from typing import cast

from mmengine.model import is_model_wrapper
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn

from paperkit.training.openmmlab import own_scope

OWN = own_scope("stpt")


def rates(model: nn.Module, lr: float, weight_decay: float, backbone: float = 0.1) -> dict[str, tuple[float, float]]:
    """(rate, decay) of every trainable parameter by its name, in the model's order.

    Vectors and single numbers are what is not decayed: affine parameters of norms, biases and scales.

    Args:
        backbone: factor on the rate of what stands under the child `backbone`.
    """
    return {
        name: (
            lr * (backbone if name.startswith("backbone.") else 1.0),
            weight_decay if parameter.ndim > 1 else 0.0,
        )
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@OWN.OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class STPTGroups(DefaultOptimWrapperConstructor):
    """mmengine's constructor with the groups of `rates`: one for each pair that occurs, four at most."""

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """The wrapped optimiser of a model, or of the one in a wrapper for several processes."""
        inner = cast(nn.Module, model.module) if is_model_wrapper(model) else model
        given, parameters = dict(self.optimizer_cfg), dict(inner.named_parameters())
        members: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, pair in rates(inner, given["lr"], given["weight_decay"], **(self.paramwise_cfg or {})).items():
            members.setdefault(pair, []).append(parameters[name])
        given["params"] = [dict(params=each, lr=lr, weight_decay=decay) for (lr, decay), each in members.items()]
        made = dict(optimizer=OWN.OPTIMIZERS.build(given))
        return OWN.OPTIM_WRAPPERS.build({"type": "OptimWrapper", **self.optim_wrapper_cfg}, default_args=made)
