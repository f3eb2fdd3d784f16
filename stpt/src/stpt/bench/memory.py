"""Peak memory of a backbone: a process for each point."""

import sys

import torch

from paperkit.results.measure import MEBIBYTE, mark_start, peak_rss
from stpt.bench import networks

Shape = tuple[int, ...]
FIRST = (1, 32, 32, 32)
"""Shape of the clip of the first call."""


def clip_peak(name: str, shape: Shape) -> float:
    """MiB that a clip's forward pass adds to weights and input."""
    return _peak("clip_once", name, shape)


def training_peak(name: str, shape: Shape) -> float:
    """MiB that a forward and a backward pass add, gradients included."""
    return _peak("training_once", name, shape)


def _peak(function: str, name: str, shape: Shape) -> float:
    code = f"from stpt.bench.memory import {function}; {function}({name!r}, {shape!r})"
    return peak_rss([sys.executable, "-c", code], timeout=300).above / MEBIBYTE


def clip_once(name: str, shape: Shape) -> None:
    """The measured process of `clip_peak`."""
    torch.set_num_threads(1)
    model, clip = networks.network(name), networks.clip_of(shape)
    networks.infer(model, networks.clip_of(FIRST))  # what a first call loads and keeps is the libraries'
    mark_start()
    networks.infer(model, clip)


def training_once(name: str, shape: Shape) -> None:
    """The measured process of `training_peak`."""
    torch.set_num_threads(1)
    model, clip = networks.training_network(name), networks.clip_of(shape)
    networks.train(model, networks.clip_of(FIRST))
    model.zero_grad(set_to_none=True)
    mark_start()
    networks.train(model, clip)
