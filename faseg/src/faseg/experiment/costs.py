"""What one picture costs each arm: multiply-adds, parameters, key tokens."""

from dataclasses import replace

import torch

from faseg.experiment.looking import look
from faseg.experiment.network import SceneNetwork, new_network
from faseg.experiment.scenes import SIDE
from faseg.experiment.settings import ARMS, FASEG, ExperimentConfig
from paperkit.results.flops import Counts, MacCounter

WINDOWS = (SIDE // 8) ** 2


def omegas() -> list[int]:
    """From 1, all windows, to the one that keeps a single window."""
    return [omega for omega in (1, 2, 4, 8, 16) if omega <= WINDOWS]


def costs_of_arms(config: ExperimentConfig) -> dict[str, Counts]:
    """Multiply-adds and parameters of each arm."""
    return {arm: _count(arm, config) for arm in ARMS}


def macs_of_omegas(config: ExperimentConfig) -> dict[int, int]:
    """Multiply-adds of `faseg` for each omega."""
    return {omega: _count(FASEG, replace(config, omega=omega)).macs for omega in omegas()}


def keys_of_arms(config: ExperimentConfig) -> dict[str, int]:
    """Keys that the cross-attentions of all layers read together."""
    image = torch.zeros(1, 1, SIDE, SIDE)
    return {arm: sum(s.attention.shape[-1] for s in look(new_network(arm, 0, config), image)[0]) for arm in ARMS}


@torch.no_grad()
def _count(arm: str, config: ExperimentConfig) -> Counts:
    # torch's counter takes no views of parameters that ask for a gradient, such as the queries of a batch.
    network = SceneNetwork(arm, config).eval().requires_grad_(False)
    with MacCounter() as counter:
        network(torch.zeros(1, 1, SIDE, SIDE))
    return Counts(counter.macs, sum(p.numel() for p in network.parameters()))
