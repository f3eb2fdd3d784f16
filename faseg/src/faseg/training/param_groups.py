"""Rate and weight decay of each parameter, by the rule of the authors' trainer (the recipe that Mask2Former has).

AdamW at 1e-4 with decay 0.05. Parameters of the backbone learn at a tenth of the rate. Norm layers, embeddings and
tables of relative positions are not decayed; all other biases are, and so is the pixel decoder's `level_embed`, which
is no embedding but a plain parameter.
"""

from typing import Any

from torch import nn

NORMS = (
    nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm,
    nn.LocalResponseNorm,
)  # fmt: skip
TABLES = ("relative_position_bias_table", "absolute_pos_embed")


def rates(
    model: nn.Module, lr: float = 1e-4, weight_decay: float = 0.05, backbone: float = 0.1
) -> dict[str, tuple[float, float]]:
    """(rate, decay) of every trainable parameter by its name, in the model's order.

    Args:
        backbone: factor on the rate of what stands under a module of the name `backbone`.
    """
    found = {}
    for path, module in model.named_modules():
        factor = backbone if "backbone" in path.split(".") else 1.0
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                free = isinstance(module, (*NORMS, nn.Embedding)) or name in TABLES
                found[f"{path}.{name}".removeprefix(".")] = (lr * factor, 0.0 if free else weight_decay)
    return found


def parameter_groups(
    model: nn.Module, lr: float = 1e-4, weight_decay: float = 0.05, backbone: float = 0.1
) -> list[dict[str, Any]]:
    """`rates` as an optimiser takes them: one group for each pair of rate and decay that occurs, four at most.

    The authors make a group of every parameter; AdamW's steps are the same, and few groups are one kernel each.
    """
    parameters, groups = dict(model.named_parameters()), dict[tuple[float, float], list[nn.Parameter]]()
    for name, pair in rates(model, lr, weight_decay, backbone).items():
        if name in parameters:  # a shared parameter has one name there
            groups.setdefault(pair, []).append(parameters[name])
    return [dict(params=params, lr=rate, weight_decay=decay) for (rate, decay), params in groups.items()]
