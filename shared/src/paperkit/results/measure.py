"""Time and memory as ratios of one run: a lone time says more about the machine than about the code.

Times are taken in pairs inside one process (baseline, variant, baseline, variant, ...), so that what else the machine
does hits both sides; the baseline against itself stands first in every table, as the noise floor. Peak memory takes a
process per side, because a process's peak never falls. What autograd keeps is counted, not measured.
"""

import atexit
import contextlib
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import timer  # waits for the accelerator, if there is one

from paperkit.errors import UserError
from paperkit.files.atomic import write_atomic
from paperkit.files.runs import plain
from paperkit.results.command_line import command_line
from paperkit.results.environment import cpu, library_versions, torch_threads

_MARK = "PAPERKIT_PEAK_FILE"
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Ratio:
    """Time of a variant over that of the baseline: median and quartiles of the per-pair ratios (below 1 is faster).

    `baseline_seconds` and `seconds` are the medians of one call of each; `pairs` is their number.
    """

    name: str
    median: float
    q25: float
    q75: float
    baseline_seconds: float
    seconds: float
    pairs: int


@dataclass(frozen=True)
class PeakMemory:
    """Resident memory of a process in bytes: when it called `mark_start`, and the largest after that."""

    start: int
    peak: int

    @property
    def above(self) -> int:
        """What the work added; differences under 5 % of it mean nothing on a CPU."""
        return self.peak - self.start


def compare(
    baseline: Callable[[], object],
    variants: Mapping[str, Callable[[], object]],
    pairs: int = 15,
    warmup: int = 3,
    min_seconds: float = 0.02,
    name: str = "baseline",
) -> list[Ratio]:
    """Times variants against a baseline; the first Ratio is the baseline against itself.

    Args:
        baseline, variants: one step each, without arguments; whatever they return is dropped.
        pairs: timed pairs per variant; every other pair runs the variant first.
        warmup: untimed calls of each beforehand.
        min_seconds: a timing repeats a shorter call until it is about this long.
    """
    sides = {f"{name} again": baseline, **variants}
    calls = {}
    for label, step in {name: baseline, **sides}.items():
        for _ in range(max(warmup, 1)):
            once = _time(step, 1)
        calls[label] = max(1, round(min_seconds / max(once, 1e-9)))
    times: dict[str, list[tuple[float, float]]] = {label: [] for label in sides}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for pair in range(pairs):
            for label, step in sides.items():
                if pair % 2:
                    seconds = _time(step, calls[label])
                    times[label].append((_time(baseline, calls[name]), seconds))
                else:
                    base = _time(baseline, calls[name])
                    times[label].append((base, _time(step, calls[label])))
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    return [_ratio(label, taken) for label, taken in times.items()]


def _time(step: Callable[[], object], calls: int) -> float:
    """Seconds per call."""
    start = timer()
    for _ in range(calls):
        step()
    return (timer() - start) / calls


def _ratio(label: str, taken: Sequence[tuple[float, float]]) -> Ratio:
    ratios = [seconds / base for base, seconds in taken]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    base, seconds = (statistics.median(side) for side in zip(*taken, strict=True))
    return Ratio(label, middle, low, high, base, seconds, len(ratios))


def print_ratios(ratios: Iterable[Ratio], title: str = "") -> None:
    """Prints a table of ratios, the noise floor first."""
    from paperkit.results import report  # late: matplotlib has no place in a process whose memory is measured

    rows = [(r.name, f"{r.median:.3f}", f"{r.q25:.3f}", f"{r.q75:.3f}", f"{r.seconds * 1e3:.4g}") for r in ratios]
    report.table(rows, ("variant", "time x", "q25", "q75", "ms"), title)


def mark_start() -> None:
    """In a process that `peak_rss` started: everything up to here (imports, building) is not to be counted.

    Without such a parent it does nothing.
    """
    if not (target := os.environ.pop(_MARK, "")):
        return
    with contextlib.suppress(OSError):  # not Linux: then the peak may be one of the building
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    start = _resident(peak=False)
    atexit.register(lambda: Path(target).write_text(json.dumps({"start": start, "peak": _resident(peak=True)})))


def peak_rss(argv: Sequence[str | os.PathLike[str]], timeout: float | None = None) -> PeakMemory:
    """Runs a command, which calls `mark_start` when its model is built, and measures what it adds from there on.

    Blocks from 1 MiB on go back to the system when they are freed (glibc): left in the heap, the places of freed ones
    are a matter of chance, and the same step peaked at 1.1 to 1.45 times another's from run to run.

    Raises:
        UserError: if the command fails, takes longer than `timeout` seconds, or never called `mark_start`.
    """
    command = " ".join(map(str, argv))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "peak.json"
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MEBIBYTE), _MARK: str(target)}
        try:
            done = subprocess.run(list(argv), env=environment, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"not done after {timeout:g} s: {command}") from error
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise UserError(f"exit code {done.returncode} of {command}: {last}")
        if not target.exists():
            raise UserError(f"the process never called paperkit.results.measure.mark_start: {command}")
        return PeakMemory(**json.loads(target.read_text()))


def _resident(peak: bool) -> int:
    """Resident bytes of this process, now or at most so far.

    Linux' VmHWM, because ru_maxrss of a new program begins at the peak of the process that started it.
    """
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) * 1024
    except (OSError, KeyError):  # macOS: bytes, and only the peak is known
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_cuda(step: Callable[[], object]) -> int:
    """Bytes that a step allocates at most on the current CUDA device, beyond what was allocated before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def saved_bytes(forward: Callable[[], object], model: nn.Module | None = None) -> int:
    """Bytes that autograd keeps for the backward pass of one forward call; the same on every machine.

    Each storage counts once and parameters do not count. It does not see into compiled graphs.

    Args:
        forward: returns what backward would be called on, so that the graph lives until it is counted.
        model: its parameters and buffers are left out even where only a detached alias of them is saved.
    """
    left_out = {t.untyped_storage()._cdata for t in _tensors(model)}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        of_parameter = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
        if not of_parameter and storage._cdata not in left_out:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    total = sum(storage.nbytes() for storage in kept.values())
    del result
    return total


def _tensors(model: nn.Module | None) -> Iterable[Tensor]:
    return [] if model is None else [*model.parameters(), *model.buffers()]


def machine() -> dict[str, Any]:
    """What a figure depends on: processor with its vector flags, threads, precision, versions, accelerator."""
    return {
        "cpu": cpu(),
        "threads": torch_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": library_versions(),
    }


def write_bench(path: str | os.PathLike[str], paper: str, **sections: Any) -> None:
    """Writes a bench's JSON, whole or not at all: paper, command, machine, and each section (Ratios, dicts, lists)."""
    content = {"paper": paper, "command": command_line(), "machine": machine(), **plain(sections)}
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
