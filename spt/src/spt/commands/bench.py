"""Time and memory against peft's LoRA, full fine-tuning and the released sweep, as ratios of one run.

About six minutes; `--quick` measures less often and is for trying it out.
"""

from typing import Any

from paperkit.errors import UserError


def add_arguments(parser: Any) -> None:
    """Options."""
    parser.add_argument(
        "--parts", type=list[str], default=[], help="step, memory, sensitivity, delta, allocation (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="the fewest repetitions; the ratios are rough")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch (default: one per core)")


def run(arguments: Any) -> None:
    """Measures, prints, and writes JSON and a plot to `<root>/spt/bench`."""
    import os
    import time
    from pathlib import Path

    import torch

    from paperkit.results.measure import machine, write_bench
    from spt.bench.race import PARTS, draw_bench

    parts = arguments.parts or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        raise UserError(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    threads = arguments.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes whose memory is measured
    about = machine()
    print(f"{about['cpu']['model']}, {threads} threads, flags {' '.join(about['cpu']['flags'])}", flush=True)
    sections, start = {}, time.monotonic()
    for part in parts:
        sections[part] = PARTS[part](arguments.quick)
        print(f"({time.monotonic() - start:.0f} s so far)", flush=True)
    folder = Path(arguments.root) / "spt" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    write_bench(folder / "bench.json", "spt", **sections)
    if drawn := draw_bench(sections, folder / "bench.png"):
        print(f"drawn: {drawn}")
    print(f"written: {folder / 'bench.json'}")
