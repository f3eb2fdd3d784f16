"""Time and memory of SPT against what users would take instead, as ratios of one run (`spt bench`)."""

import copy
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from paperkit.results.measure import compare, peak_rss, print_ratios, saved_bytes
from paperkit.results.report import COLORS, figure, save_figure, style, table
from spt.bench import arms as bench_arms
from spt.bench.arms import ARMS, LORA_QKV, SPT
from spt.deployment.hot_swap import HotSwap
from spt.method.allocation import Rule
from spt.method.budget import RELEASED_BUDGETS, exact_selection, official_selections, sweep_taus
from spt.method.candidates import find_candidates
from spt.models.delta import load_delta
from spt.models.spt_model import SPTConfig, SPTModel

MIB = 2**20


def bench_allocation(quick: bool = False) -> dict[str, Any]:
    """One selection against the released sweep, on 85 M scores of ViT-B/16.

    The released sweep takes minutes, so ten of its 79 steps, evenly spaced, are timed and stand for all; ours is the
    median of three (with `quick` two steps are timed, and ours once).
    """
    with torch.device("meta"):
        shapes = find_candidates(bench_arms.vit_b()).shapes()
    draw = torch.Generator().manual_seed(0)
    # Heavy-tailed, as squared gradients are; never infinite.
    values = {n: torch.rand(s, generator=draw).clamp_(min=1e-7).log_().neg_().pow_(3) for n, s in shapes.items()}
    rule = Rule("lora")
    every = sweep_taus()
    timed = every[4::40] if quick else every[4::8]
    released = _seconds(lambda: released_sweep(values, rule, timed)) * len(every) / len(timed)
    ours = {
        "exact budget, one ranking": lambda: exact_selection(values, rule, 400_000),
        "the whole released sweep from one ranking": lambda: official_selections(values, rule),
    }
    medians = {name: median(_seconds(work) for _ in range(1 if quick else 3)) for name, work in ours.items()}
    rows = [(f"released sweep, 79 rankings ({len(timed)} timed)", released, 1.0)]
    rows += [(name, seconds, released / seconds) for name, seconds in medians.items()]
    scores = sum(shape.numel() for shape in shapes.values())
    table(rows, ("allocation", "seconds", "times faster"), f"Allocation on {scores:,} scores")
    faster = {name: released / seconds for name, seconds in medians.items()}
    return {"released_seconds": released, "steps_timed": len(timed), "seconds": medians, "times_faster": faster}


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def released_sweep(values: dict[str, torch.Tensor], rule: Rule, taus: Sequence[int]) -> dict[float, float]:
    """The loop as released: for each tau a top-k over all scores, a mask of the model's size, counts by parameter."""
    flat = torch.cat([value.flatten() for value in values.values()])
    sizes = [value.numel() for value in values.values()]
    best = dict.fromkeys(RELEASED_BUDGETS, 0.0)
    for tau in taus:
        mask = torch.zeros_like(flat)
        mask[flat.topk(tau).indices] = 1
        total = float(rule.fixed)
        for piece, value in zip(mask.split(sizes), values.values(), strict=True):
            count = float(piece.sum())
            total += rule.cost(value.shape) if count >= rule.threshold(value.shape) else count
        for budget, old in best.items():
            if abs(total / 1e6 - budget) <= abs(old - budget):
                best[budget] = total / 1e6
    return best


def bench_step(quick: bool = False) -> dict[str, Any]:
    """A tuning step of ViT-B/16 at batch 8: float32 (oneDNN), and bfloat16 autocast for the two that compete."""
    torch.set_float32_matmul_precision("medium")
    pairs = 1 if quick else 3
    steps = {arm: bench_arms.make_step(bench_arms.build(arm)) for arm in ARMS}
    others = {arm: step for arm, step in steps.items() if arm != LORA_QKV}
    ratios = compare(steps[LORA_QKV], others, pairs=pairs, warmup=1, min_seconds=0, name=LORA_QKV)
    print_ratios(
        ratios, f"Step of ViT-B/16, batch {bench_arms.BATCH}, float32 with matmul precision medium; {LORA_QKV} = 1"
    )
    del steps, others
    low = {arm: bench_arms.make_step(bench_arms.build(arm), bf16=True) for arm in (LORA_QKV, SPT)}
    halves = compare(low[LORA_QKV], {SPT: low[SPT]}, pairs=pairs, warmup=1, min_seconds=0, name=LORA_QKV)
    print_ratios(halves, "The same step under bfloat16 autocast")
    return {"float32_medium": ratios, "bfloat16": halves}


def bench_memory(quick: bool = False) -> dict[str, Any]:
    """Peak of a process a side, and the parts that can be counted: weights, saved activations, optimiser state."""
    torch.set_float32_matmul_precision("medium")
    out: dict[str, Any] = {}
    for arm in (LORA_QKV, SPT) if quick else ARMS:
        model = bench_arms.build(arm)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        images = torch.randn(bench_arms.BATCH, 3, 224, 224)
        activations = saved_bytes(lambda m=model, x=images: m.train()(x).sum(), model)  # type: ignore[misc]
        del model
        peak = peak_rss([sys.executable, "-m", "spt.bench.arms", arm], timeout=280)
        parts = {"weights": weights, "activations": activations, "optimiser and gradients": 3 * trained}
        out[arm] = {**parts, "counted": sum(parts.values()), "process": weights + peak.above}
    base = out[LORA_QKV]
    rows = [
        (
            arm,
            *(round(v[k] / MIB) for k in ("weights", "activations", "optimiser and gradients", "process")),
            v["counted"] / base["counted"],
            v["process"] / base["process"],
        )
        for arm, v in out.items()
    ]
    columns = (
        "arm",
        "weights MiB",
        "activations MiB",
        "optimiser + gradients MiB",
        "process MiB",
        "counted x",
        "process x",
    )
    table(rows, columns, f"Memory of a step of ViT-B/16, batch {bench_arms.BATCH}; {LORA_QKV} = 1")
    return out


def bench_sensitivity(quick: bool = False) -> dict[str, Any]:
    """The measuring pass: what gradients and accumulators add to a pass whose gradients are dropped at once.

    That pass holds activations, temporaries, and one gradient at a time, whose size (of the largest) is added again.
    """
    model = bench_arms.vit_b()
    sizes = [p.numel() * p.element_size() for p in model.parameters()]
    activations = saved_bytes(lambda: model(torch.randn(2, 3, 224, 224)).sum(), model)
    peaks = {
        kind: peak_rss([sys.executable, "-m", "spt.bench.arms", f"sensitivity {kind}"], timeout=280).above
        for kind in bench_arms.PASSES
    }
    weights, nothing = sum(sizes), peaks["dropped"] - max(sizes)
    rows = [(k, peak / weights, activations / weights, (peak - nothing) / weights) for k, peak in peaks.items()]
    columns = ("gradients", "process beyond weights, x weights", "saved activations", "gradients + accumulators")
    table(rows, columns, "Sensitivity pass of ViT-B/16, batch 2")
    return {"weights": weights, "activations": activations, "above": peaks}


def bench_delta(quick: bool = False) -> dict[str, Any]:
    """Delta on disk against a LoRA file of equal count, and switching against reloading a model."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file, save_file

    model = bench_arms.vit_b()
    selection = bench_arms.released_shape(model)
    sparse = copy.copy(selection)
    everything = {name: shape for name, shape in selection.shapes.items() if len(shape) == 2}
    draw, each = torch.Generator().manual_seed(1), selection.counted // len(everything)
    sparse.modules, sparse.vectors = [], []
    sparse.entries = {n: torch.randperm(s.numel(), generator=draw)[:each].sort().values for n, s in everything.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plain_file = folder / "model.safetensors"
        save_file(model.state_dict(), plain_file)
        lora = bench_arms.build(LORA_QKV)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save_file(get_peft_model_state_dict(lora), folder / "lora.safetensors")
        lora_count = sum(p.numel() for n, p in lora.named_parameters() if p.requires_grad and "lora" in n)
        sizes: dict[str, dict[str, float]] = {
            "peft LoRA on qkv": {"count": lora_count, "bytes": (folder / "lora.safetensors").stat().st_size}
        }
        for name, chosen in (("SPT-LoRA, 0.4 M", selection), ("single entries only", sparse)):
            tuned = SPTModel(copy.deepcopy(model), SPTConfig(), chosen)
            tuned.save_pretrained(folder / name)
            sizes[name] = {
                "count": tuned.spent().trained,
                "bytes": (folder / name / "adapter_model.safetensors").stat().st_size,
            }
        head = sum(p.numel() for n, p in model.named_parameters() if "head" in n) * 4
        for entry in sizes.values():
            entry["bytes_a_parameter"] = (entry["bytes"] - head) / entry["count"]
        base = sizes["peft LoRA on qkv"]["bytes_a_parameter"]
        rows = [
            (n, round(e["count"]), round(e["bytes"]), e["bytes_a_parameter"], e["bytes_a_parameter"] / base)
            for n, e in sizes.items()
        ]
        table(
            rows,
            ("file, head included", "trained", "bytes", "bytes a parameter", "x LoRA at equal count"),
            "Delta on disk",
        )

        swap = HotSwap(copy.deepcopy(model))
        for name in ("SPT-LoRA, 0.4 M", "single entries only"):
            swap.add(name, load_delta(folder / name))
        names = list(swap.deltas)
        turn = iter(range(10**9))

        def reload() -> None:
            fresh = bench_arms.vit_b()
            fresh.load_state_dict(load_file(plain_file))

        def load_weights() -> None:
            model.load_state_dict(load_file(plain_file))

        ratios = compare(
            reload,
            {
                "weights alone into a built model": load_weights,
                "switch to the next delta": lambda: swap.switch(names[next(turn) % 2]),
            },
            pairs=3 if quick else 7,
            name="build and load a model",
        )
        print_ratios(ratios, "Switching tasks")
    return {"files": sizes, "switch": ratios}


def draw_bench(sections: dict[str, Any], path: Path) -> Path | None:
    """Step time and memory of the arms beside peft's LoRA, of what was measured; None if neither was."""
    panels = [name for name in ("step", "memory") if name in sections]
    if not panels:
        return None
    with style():
        drawn, grid = figure(1, len(panels), width=5 * len(panels), height=3.6, squeeze=False)
        for axes, name in zip(grid[0], panels, strict=True):
            if name == "step":
                ratios = sections["step"]["float32_medium"]
                sides = {LORA_QKV: 1.0, **{ratio.name: ratio.median for ratio in ratios[1:]}}
                axes.set_xlabel(f"time, {LORA_QKV} = 1\n(dotted: target for SPT)")
            else:
                base = sections["memory"][LORA_QKV]["process"]
                sides = {arm: entry["process"] / base for arm, entry in sections["memory"].items()}
                axes.set_xlabel(f"peak of the process, {LORA_QKV} = 1\n(dotted: target for SPT)")
            axes.barh(list(sides), list(sides.values()), color=COLORS[0 if name == "step" else 2])
            axes.axvline(1.15 if name == "step" else 1.25, color="black", linewidth=1, linestyle=":")
            axes.set_title(f"{name.capitalize()} of ViT-B/16, batch {bench_arms.BATCH}")
        save_figure(drawn, path)
    return path


PARTS = {
    "step": bench_step,
    "memory": bench_memory,
    "sensitivity": bench_sensitivity,
    "delta": bench_delta,
    "allocation": bench_allocation,
}
