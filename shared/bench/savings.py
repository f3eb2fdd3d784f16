"""What each of the survey's switches is worth on this machine: time, memory, arithmetic, and what is learned.

Time is interleaved in one process, peak memory is of a process each, and losses are of several seeds. The plain step
against itself is the noise floor of each figure, and inside it there is no verdict. Losses are compared after the same
number of steps and after the same time: the second run of a switch takes as many steps as fit, by its measured ratio,
into the time of the plain run, under a schedule of that length.
"""

import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from paperkit.command.seeds import run_seeds
from paperkit.errors import UserError
from paperkit.results.flops import MacCounter
from paperkit.results.measure import Ratio, compare, peak_cuda, peak_rss, saved_bytes, write_bench
from savings_report import Line, moved, report
from savings_trial import AGAIN, BASE, HEAVY, LARGE, SMALL, SWITCHES, VARIANTS, Size, Trial, Variant

UNTRAINED = {"compile"}  # the same arithmetic as the plain step, and minutes of compiling for every seed


def times(variants: Sequence[Variant], size: Size, pairs: int, device: str) -> dict[str, Ratio]:
    """Ratios of a step's time, by name; a size schedule's is the mean of its two phases."""
    steps = {variant.name: Trial(variant, size, device=device).fixed_step() for variant in variants}
    base = Trial(BASE, size, device=device).fixed_step()
    again, *found = compare(base, steps, pairs, name=BASE.name)
    ratios = {AGAIN.name: replace(again, name=AGAIN.name)}
    for variant, ratio in zip(variants, found, strict=True):
        share = variant.small_share
        low, middle, high = (share * r + (1 - share) for r in (ratio.q25, ratio.median, ratio.q75))
        ratios[variant.name] = replace(ratio, median=middle, q25=low, q75=high) if share else ratio
    return ratios


def largest_phase(variant: Variant) -> Variant:
    """What decides the memory of a run with a size schedule."""
    return replace(variant, small_share=0.0)


def peaks(variants: Sequence[Variant], device: str) -> dict[str, float]:
    """Peak memory of three steps above the built model, in bytes."""
    if device == "cuda":
        trials = {variant.name: Trial(largest_phase(variant), HEAVY, device=device) for variant in variants}
        return {name: float(peak_cuda(trial.fixed_step())) for name, trial in trials.items()}
    command = [sys.executable, str(Path(__file__).with_name("savings_trial.py"))]
    names = [variant.name for variant in variants]
    with ThreadPoolExecutor(2) as pool:  # two at a time: memory, unlike time, does not mind company
        found = pool.map(lambda name: float(peak_rss([*command, name], 400).above), names)
        return dict(zip(names, found, strict=True))


def saved(variant: Variant) -> float:
    """Bytes that autograd keeps for the backward pass of one part of a batch; compiled graphs cannot be looked into."""
    if variant.savings.compile:
        return math.nan
    trial = Trial(largest_phase(variant), LARGE)
    images, labels = (tensor.chunk(variant.accumulate)[0] for tensor in trial.fixed_batch())
    return float(saved_bytes(lambda: trial.loss(images, labels), trial.model))


def macs(variant: Variant) -> float:
    """Multiply-adds of a step, forward and backward, counted on the meta device; the mean over a size schedule."""
    share = variant.small_share
    if 0 < share < 1:
        return share * macs(replace(variant, small_share=1.0)) + (1 - share) * macs(largest_phase(variant))
    savings = replace(variant.savings, compile=False)
    optim = replace(variant.optim, fused=False)  # there is no fused step on the meta device
    with MacCounter() as counter:
        Trial(replace(variant, savings=savings, optim=optim), LARGE, device="meta").fixed_step()()
    return float(counter.macs)


def compiles() -> bool:
    """Whether torch.compile works on this machine; on a CPU it needs a C++ compiler."""
    try:
        torch.compile(torch.sin)(torch.ones(1))
    except Exception:
        return False
    return True


def train_seed(
    seed: int, advance: Callable[[int], None], plan: dict[str, list[int]], device: str
) -> dict[str, list[tuple[float, float]]]:
    """Loss and accuracy of every planned run of one seed: name -> one pair per number of steps."""

    def trained(name: str, steps: int) -> tuple[float, float]:
        own = seed + 1000 if name == AGAIN.name else seed  # the noise floor is another seed
        return Trial(VARIANTS[name], SMALL, own, steps, device).train(advance)

    return {name: [trained(name, steps) for steps in lengths] for name, lengths in plan.items()}


def measure(variants: Sequence[Variant], pairs: int, seeds: int, steps: int, device: str) -> list[Line]:
    """All figures of the plain step against itself and of each variant."""
    print(f"time of a step: {len(variants)} switches, interleaved", flush=True)
    if any(variant.savings.compile for variant in variants) and not compiles():
        print("note: no compiler that torch.compile could use; its row is left out", flush=True)
        variants = [variant for variant in variants if not variant.savings.compile]
    large, small = times(variants, LARGE, pairs, device), times(variants, SMALL, 3 * pairs, device)
    print("peak memory: a process per switch", flush=True)
    peak = peaks([BASE, AGAIN, *variants], device)
    lines = []
    for variant in [AGAIN, *variants]:
        figures = peak[variant.name] / peak[BASE.name], saved(variant) / saved(BASE), macs(variant) / macs(BASE)
        lines.append(Line(variant.name, large[variant.name], small[variant.name], *figures))
        lines[-1].steps = round(steps / small[variant.name].median) if moved(small, variant.name) else steps
    trained = [line for line in lines if line.name not in UNTRAINED]
    plan = {line.name: [steps, *([line.steps] if line.steps != steps else [])] for line in trained}
    plan = {BASE.name: [steps], **plan}
    total = sum(map(sum, plan.values()))
    print(f"losses: {seeds} seeds of {total:,} steps", flush=True)
    results = run_seeds("savings:train_seed", range(seeds), {"plan": plan, "device": device}, total)
    base = [results[seed][BASE.name][0] for seed in range(seeds)]
    for line in trained:
        found = [results[seed][line.name] for seed in range(seeds)]
        line.accuracy = [runs[0][1] for runs in found]
        ratios = [[loss / plain[0] for loss, _ in runs] for runs, plain in zip(found, base, strict=True)]
        line.equal_steps = [values[0] for values in ratios]
        line.equal_time = [values[1] for values in ratios] if line.steps != steps else None
    return lines


def add_arguments(parser: Any) -> None:
    """Options of `make shared-bench`."""
    parser.add_argument("--only", nargs="+", type=str, default=[], help="names of switches, as the table has them; all")
    parser.add_argument("--pairs", type=int, default=7, help="timed pairs per switch")
    parser.add_argument("--seeds", type=int, default=6, help="seeds of the losses, at least 2")
    parser.add_argument("--steps", type=int, default=240, help="steps of a plain run")
    parser.add_argument("--output", type=str, default="runs/shared/bench", help="folder of the results")


def run(arguments: Any) -> None:
    """Measure, print and write."""
    unknown = sorted(set(arguments.only) - {variant.name for variant in SWITCHES})
    if unknown:
        raise UserError(f"unknown switch {unknown[0]!r}; choose from: {', '.join(v.name for v in SWITCHES)}")
    if arguments.seeds < 2 or arguments.pairs < 1 or arguments.steps < 10:
        raise UserError("the bench needs at least 2 seeds, 1 pair and 10 steps")
    torch.set_num_threads(1)
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    variants = [variant for variant in SWITCHES if not arguments.only or variant.name in arguments.only]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines = measure(variants, arguments.pairs, arguments.seeds, arguments.steps, device)
    write_bench(output / "savings.json", "paperkit", lines=lines, seeds=arguments.seeds, steps=arguments.steps)
    report(lines, output, f"{arguments.seeds} seeds of {arguments.steps} steps, {device}, one thread")
