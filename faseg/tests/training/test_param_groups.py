"""The groups through mmengine's constructor; names and rates of the releases are in the reference files."""

import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

import faseg.training.optimizer_constructor  # noqa: F401
from faseg.training.param_groups import rates


class Network(nn.Module):
    """One parameter of each sort."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.query_feat = nn.Embedding(2, 4)
        self.level_embed = nn.Parameter(torch.zeros(3, 4))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(3, 4))
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.decoder_norm = nn.LayerNorm(4)


def test_groups_of_mmengine() -> None:
    model = Network()
    config = dict(
        type="OptimWrapper",
        constructor="FASegGroups",
        optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
        clip_grad=dict(max_norm=0.01),
    )
    wrapper = build_optim_wrapper(model, config)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in wrapper.optimizer.param_groups for p in g["params"]}
    assert (
        found
        == rates(model)
        == {
            "backbone.0.weight": (1e-5, 0.05),
            "backbone.0.bias": (1e-5, 0.05),
            "backbone.1.weight": (1e-5, 0.0),
            "backbone.1.bias": (1e-5, 0.0),
            "query_feat.weight": (1e-4, 0.0),
            "level_embed": (1e-4, 0.05),
            "relative_position_bias_table": (1e-4, 0.0),
            "decoder_norm.weight": (1e-4, 0.0),
            "decoder_norm.bias": (1e-4, 0.0),
        }
    )
    assert len(wrapper.optimizer.param_groups) == 4
