"""Peak memory of a training step of the supernet: a process for each point."""

import sys

import torch

from focusformer.bench.forms import images_of, supernet_of, training_step
from focusformer.method.architecture import AUTOFORMER, SPACES
from paperkit.results.measure import MEBIBYTE, mark_start, peak_rss


def training_peak(form: str, space: str, batch: int) -> float:
    """MiB that forward and backward add to weights and images, the gradients included."""
    code = f"from focusformer.bench.memory import run_once; run_once({form!r}, {space!r}, {batch})"
    return peak_rss([sys.executable, "-c", code], timeout=300).above / MEBIBYTE


def run_once(form: str, space: str, batch: int) -> None:
    """The measured process of `training_peak`."""
    torch.set_num_threads(1)
    sizes = SPACES[space].sizes
    net = supernet_of(form, sizes)
    training_step(net, AUTOFORMER[space], images_of(sizes, 1))()  # what a first call loads and keeps is the libraries'
    step = training_step(net, AUTOFORMER[space], images_of(sizes, batch))
    net.zero_grad()
    mark_start()
    step()
