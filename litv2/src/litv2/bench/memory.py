"""Peak memory of the bench: what one forward pass adds to a process of its own.

Networks get a fresh process each (`paperkit.results.measure.peak_rss`). Layers are small beside the libraries that a
process loads, so one helper process loads them once and forks a child for each layer and grid (`layer_peaks`).
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from litv2.bench.networks import RIVALS, litv2_s, rival
from litv2.bench.plain import plain_logits
from litv2.deployment.fused import fuse
from litv2.experiment.single_layer import LAYERS
from litv2.models.classifier import LITv2
from paperkit.errors import UserError
from paperkit.results.measure import mark_start, peak_rss

MIB = 2**20


def network_peak(name: str, size: int) -> float:
    """MiB that one forward pass of "fused", "plain" or a rival adds, batch 1."""
    code = f"from litv2.bench.memory import run_once; run_once({name!r}, {size})"
    return peak_rss([sys.executable, "-c", code], timeout=300).above / MIB


def run_once(name: str, size: int) -> None:
    """The measured process of `network_peak`."""
    torch.set_num_threads(1)
    image = torch.randn(1, 3, size, size)
    if name not in ("fused", "plain", *RIVALS):
        raise UserError(f"no network '{name}'")
    model = litv2_s() if name in ("fused", "plain") else rival(name, size)
    network: Callable[[Tensor], Tensor] = fuse(model) if name == "fused" and isinstance(model, LITv2) else model
    with torch.inference_mode():
        mark_start()
        plain_logits(model, image) if name == "plain" and isinstance(model, LITv2) else network(image)


def layer_peaks(names: Sequence[str], sides: Sequence[int], dim: int, heads: int) -> dict[tuple[str, int], float]:
    """(layer, grid side) -> MiB that one forward pass of one image adds; Linux only, empty elsewhere.

    Raises:
        UserError: the helper process failed.
    """
    if not Path("/proc/self/clear_refs").exists():
        return {}
    request = json.dumps([list(names), list(sides), dim, heads])
    code = f"from litv2.bench.memory import print_layer_peaks; print_layer_peaks(*{request})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise UserError(f"the memory of layers could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    return {(name, side): above / MIB for name, side, above in map(json.loads, done.stdout.splitlines())}


def print_layer_peaks(names: Sequence[str], sides: Sequence[int], dim: int, heads: int) -> None:
    """The helper process of `layer_peaks`: a line of JSON for each layer and grid."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        for name in names:  # what a first call loads and keeps is the libraries', not the layer's
            LAYERS[name](dim, heads, 7)(torch.randn(1, 7, 7, dim))
    for side in sides:
        for name in names:
            print(json.dumps([name, side, forked_peak(LAYERS[name](dim, heads, side).eval(), dim, side)]), flush=True)


def forked_peak(layer: nn.Module, dim: int, side: int) -> int:
    """Bytes that a child process adds to its memory by one forward pass."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            x = torch.randn(1, side, side, dim)
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            start = resident("VmRSS")
            with torch.inference_mode():
                layer(x)
            os.write(writer, str(resident("VmHWM") - start).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="ascii") as answer:
        above = answer.read()
    os.waitpid(child, 0)
    if not above:
        raise UserError(f"a layer's child process failed at {side} x {side} tokens")
    return int(above)


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024
