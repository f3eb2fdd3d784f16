"""Peak memory of one forward pass: a process for each point."""

import sys

import torch

from ecoformer.bench.forms import ECO, EXPLICIT, SDPA, attention_inputs, fastest_form
from ecoformer.method.fused_attention import fused_attention
from ecoformer.method.softmax_attention import softmax_attention
from paperkit.errors import UserError
from paperkit.results.measure import mark_start, peak_rss

MIB = 2**20


def attention_peak(name: str, tokens: int, width: int) -> float:
    """MiB that a forward pass adds to its inputs."""
    code = f"from ecoformer.bench.memory import run_once; run_once({name!r}, {tokens}, {width})"
    return peak_rss([sys.executable, "-c", code], timeout=300).above / MIB


def run_once(name: str, tokens: int, width: int) -> None:
    """The measured process of `attention_peak`. Where the kernel in C++ does not serve, EcoFormer is not compiled.

    A compiler's memory is no attention's.
    """
    torch.set_num_threads(1)
    if name not in (ECO, SDPA, EXPLICIT):
        raise UserError(f"the memory of '{name}' is not measured")

    def step(tokens: int) -> object:
        qk, v, fitted = inputs[tokens]
        if name == ECO:
            return fastest_form(fused_attention)(qk, v, *fitted)
        return softmax_attention(qk, qk, v, backend="sdpa" if name == SDPA else "explicit")

    inputs = {count: attention_inputs(count, width) for count in (196, tokens)}
    with torch.inference_mode():
        step(196)  # what a first call loads and keeps is the libraries'
        mark_start()
        step(tokens)
