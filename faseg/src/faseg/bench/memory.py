"""Peak memory of the decoder: a process for each point."""

import sys

import torch

from faseg.bench import forms
from paperkit.results.measure import MEBIBYTE, mark_start, peak_rss

SMALL = 256
"""Side of the picture of the first call."""


def decoder_peak(form: str, height: int, width: int, backward: bool) -> float:
    """MiB that a pass adds to weights and inputs, gradients included."""
    code = f"from faseg.bench.memory import run_once; run_once({form!r}, {height}, {width}, {backward})"
    return peak_rss([sys.executable, "-c", code], timeout=300).above / MEBIBYTE


def run_once(form: str, height: int, width: int, backward: bool) -> None:
    """The measured process of `decoder_peak`."""
    torch.set_num_threads(1)
    decoder = forms.decoder_of(form)
    step = forms.training if backward else forms.inference
    step(decoder, forms.decoder_maps(SMALL, SMALL))  # what a first call loads and keeps is the libraries'
    decoder.zero_grad(set_to_none=True)
    maps = forms.decoder_maps(height, width)
    mark_start()
    step(decoder, maps)
