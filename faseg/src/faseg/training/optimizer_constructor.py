"""FASeg's parameter groups in mmengine's configs.

optim_wrapper = dict(constructor="FASegGroups", optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05), ...)
"""

from typing import cast

from mmengine.model import is_model_wrapper
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from faseg.training.param_groups import parameter_groups


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class FASegGroups(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with `parameter_groups` in place of its own; `paramwise_cfg` may hold `backbone`."""

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """The wrapped optimiser of a model, or of the one in a wrapper for several processes."""
        network = cast(nn.Module, model.module) if is_model_wrapper(model) else model
        options = self.optimizer_cfg
        groups = parameter_groups(network, options["lr"], options["weight_decay"], **self.paramwise_cfg)
        optimizer = OPTIMIZERS.build({**options, "params": groups})
        wrapper = {"type": "OptimWrapper", **self.optim_wrapper_cfg}
        return OPTIM_WRAPPERS.build(wrapper, default_args=dict(optimizer=optimizer))
