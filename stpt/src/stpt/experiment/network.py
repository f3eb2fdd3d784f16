"""The small detectors of the embedded experiment: STPT's backbone of a given pattern and AFSD's head on two levels.

The head has LayerNorm in place of GroupNorm, whose statistics run over the whole clip and so tell every cell what was
shown anywhere. Each stage has one block: with more, positional convolutions would carry the cue further.
"""

from torch import nn

from paperkit.data.seeding import seed_generators
from stpt.experiment.clips import CLASSES, FRAMES, SIDE
from stpt.experiment.settings import LLGG, REFINED, ExperimentConfig
from stpt.method.attention import GlobalAttention, LocalAttention
from stpt.models.stpt import STPT

INITIAL = 1  # stream of random numbers
SPREAD = 0.1
"""Deviation of the attention layers' weights at the start. The 0.02 of wide networks leaves attention over these few
channels so even that in 160 steps some seeds never learn where to look."""


def new_network(arm: str, seed: int, config: ExperimentConfig) -> STPT:
    """The network of an arm; patterns of local and global attention start from the same weights under one seed."""
    seed_generators(seed, INITIAL)
    network = build(arm, config.channels)
    for module in network.backbone.modules():
        if isinstance(module, LocalAttention | GlobalAttention):
            for layer in (module.qkv, module.proj):
                nn.init.trunc_normal_(layer.weight, std=SPREAD)
    return network


def build(arm: str, channels: int) -> STPT:
    """A network for clips (B, 1, T, S, S): cells of 8 and of 16 frames."""
    backbone = dict(
        name="stpt",
        dims=(24, 32, 48, 64),
        depths=(1, 1, 1, 1),
        heads=(1, 2, 3, 4),
        kernels=((5, 5, 5), (1, 3, 3), (3, 1, 1), (3, 1, 1)),
        strides=((4, 4, 4), (1, 2, 2), (2, 1, 1), (2, 1, 1)),
        windows=((4, 4, 4), (4, 2, 2), (2, 2, 2), (2, 2, 2)),
        reductions=((1, 1, 1),) * 4,
        kinds=LLGG if arm == REFINED else arm,
        cpe="stage",
        drop_path=0.0,
        in_channels=1,
    )
    head = dict(num_classes=1 + len(CLASSES), frames=FRAMES, levels=2, channels=channels, head_norm="ln")
    return STPT(backbone, {**head, "refine": arm == REFINED}, size=(SIDE, SIDE))
