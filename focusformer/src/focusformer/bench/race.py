"""The clock: training steps and their memory, attention alone, the sampler's overhead, searches, extracted models.

Each part measures, prints its table with the aims it met or missed, and returns its rows; `draw` plots them. The part
`search` measures no time: it reads how many evaluations each search of a finished embedded run took.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from focusformer.bench import forms
from focusformer.bench.memory import training_peak
from focusformer.method.architecture import AUTOFORMER, SPACES, Architecture
from focusformer.method.cost import costs_of
from focusformer.method.reachable import Reachable
from focusformer.method.reinforce import Reinforce, Scores
from focusformer.method.sampler import ArchitectureSampler
from focusformer.method.search import evaluations_to_reach
from focusformer.method.strategies import Focus, FocusOptions, training_losses
from focusformer.models.extraction import extract_subnet
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder
from paperkit.results.environment import cpu
from paperkit.results.measure import MEBIBYTE, Ratio, compare, saved_bytes
from paperkit.results.metrics import Metrics
from paperkit.results.report import COLORS, figure, save_figure, style, table

Rows = list[dict[str, Any]]
NAMES = {"ti": "AutoFormer-T", "s": "AutoFormer-S"}
TARGETS = {"ti": 1.5, "s": 1.35}
"""Time of a training step in the official form over ours, aimed at."""
PAIRS = {"ti": 5, "s": 3}
BATCH = {"ti": 4, "s": 2}
"""Images of a step; a batch of 4 at S, with all three forms at hand, took 5 GiB."""
TOKENS = (197, 577)
INTERVAL, SAMPLES, IMAGES = 10, 8, 16
"""I and M of the sampler, and the images of a training step; a reward takes a quarter of them."""
OVERHEAD = 0.1
"""The share of a step that sampler and rewards may take."""
ANCHOR_STEP = 1e8
"""FLOPs between anchors in the Ti space."""
UPDATE, DRAW, TOTAL = "update of the sampler, 8 rewards included", "draw of an architecture", "sampler, by step"
LARGEST_FACTOR = 10
"""In evaluations; above it nothing is claimed on digits, where random search is soon as good as it gets."""
FOCUSED, SEARCHES = "F1", {"random": "random search", "E": "evolution"}


def training(quick: bool, threads: int | None = None) -> Rows:
    """Forward and backward of the supernet at AutoFormer-T and S: other forms over ours, and what each keeps."""
    rows: Rows = []
    for space in ("ti",) if quick else ("ti", "s"):
        sizes, architecture = SPACES[space].sizes, AUTOFORMER[space]
        images = forms.images_of(sizes, 1 if quick else BATCH[space])
        nets = {form: forms.supernet_of(form, sizes) for form in forms.FORMS}
        ours, *others = (forms.training_step(net, architecture, images) for net in nets.values())
        losses = [float(step()) for step in (ours, others[0])]
        if abs(losses[0] - losses[1]) > 1e-4 * abs(losses[0]):
            raise UserError(f"the forms of {NAMES[space]} differ: losses {losses}")
        memory = {}
        for form, net in nets.items():
            kept = saved_bytes(partial(net, images, architecture), net) / MEBIBYTE
            memory[form] = (kept, training_peak(form, space, len(images)))
        variants = dict(zip(forms.FORMS[1:], others, strict=True))
        for count in _threads(quick or space != "ti", threads):
            with _Threads(count):
                pairs = 1 if quick else PAIRS[space]
                ratios = compare(ours, variants, pairs=pairs, warmup=1, name=forms.OURS)
            for ratio in ratios:
                form = ratio.name if ratio.name in memory else forms.OURS
                here = {"network": NAMES[space], "batch": len(images), "threads": count, "form": ratio.name}
                aim = TARGETS[space] if ratio.name == forms.OFFICIAL else None
                here |= {"MiB kept": memory[form][0], "peak MiB": memory[form][1]}
                rows.append({**here, **_times(ratio), **_at_least(ratio.median, aim)})
    keys = ("network", "batch", "threads", "form", "ratio", "q25", "q75", "ms", "MiB kept", "peak MiB")
    columns = ("network", "batch", "threads", "form", "time / ours", "q25", "q75", "ms", "MiB kept", "peak MiB", "aim")
    title = "Training step, forward and backward, float32, 224 px"
    table([(*(r[k] for k in keys), _verdict(r)) for r in rows], columns, title)
    for network, count in dict.fromkeys((r["network"], r["threads"]) for r in rows):
        of = {r["form"]: r["ratio"] for r in rows if (r["network"], r["threads"]) == (network, count)}
        bound = of[forms.OFFICIAL] / of[forms.NONE]
        print(f"{network}, threads {count}: without any relative position the official form over it is {bound:.2f}")
    return rows


def attention(quick: bool, threads: int | None = None) -> Rows:
    """Relative-position attention alone, at 197 and 577 tokens: other forms over ours."""
    rows: Rows = []
    heads, batch = 3, 1 if quick else BATCH["ti"]
    for tokens in TOKENS[:1] if quick else TOKENS:
        for backward in (False, True):
            ours, *others = forms.attention_steps(tokens, heads, batch, backward).values()
            variants = dict(zip(forms.FORMS[1:], others, strict=True))
            with _Threads(threads or 1):
                ratios = compare(ours, variants, pairs=3 if quick else 9, warmup=2, name=forms.OURS)
            here = {"tokens": tokens, "pass": "forward, backward" if backward else "forward"}
            rows += [{**here, "form": ratio.name, **_times(ratio)} for ratio in ratios]
    columns = ("tokens", "pass", "form", "time / ours", "q25", "q75", "ms")
    title = f"Attention alone, heads {heads} of 64, batch {batch}, threads {threads or 1}, from q, k, v to the output"
    table([list(r.values()) for r in rows], columns, title)
    return rows


def overhead(quick: bool, threads: int | None = None) -> Rows:
    """What the sampler adds to a training step of the Ti supernet: draws, and updates with their rewards."""
    space = SPACES["ti"]
    count = 4 if quick else IMAGES
    net = forms.supernet_of(forms.OURS, space.sizes).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    images, held_out = forms.images_of(space.sizes, count), forms.images_of(space.sizes, count // 4, seed=1)
    labels, truth = torch.arange(count), torch.arange(count // 4)
    reach = Reachable(space, costs_of(space.sizes, "official_flops"), "official_flops")
    anchors = reach.anchors(1 + round((reach.quantile(0.99) - reach.quantile(0.01)) / ANCHOR_STEP))
    torch.manual_seed(0)
    sampler = ArchitectureSampler(reach, anchors)
    options = FocusOptions(steps=1000, warmup=0, interval=INTERVAL, samples=SAMPLES, exploration=0)
    strategy = Focus(sampler, Reinforce(sampler), 0, options)

    def evaluate(architectures: list[Architecture]) -> Scores:
        net.eval()
        with torch.no_grad():
            logits = [net(held_out, architecture) for architecture in architectures]
        net.train()
        losses = torch.stack([F.cross_entropy(one, truth) for one in logits])
        return Scores(torch.stack([(one.argmax(1) == truth).float().mean() for one in logits]), losses)

    numbers = iter(range(0, 10**6, INTERVAL))
    draws = iter(range(10**6))

    def update() -> object:
        return strategy.learn(next(numbers), evaluate)

    first = strategy.learn(0, evaluate)
    assert first is not None
    mean = sum(first.costs) / len(first.costs)
    plans = [strategy.plan(step, evaluate) for step in range(40)]
    passes = min(plans, key=lambda plan: abs(reach.cost(plan[0].architecture) - mean))  # as costly as what is rewarded

    def step() -> None:
        optimizer.zero_grad()
        training_losses(net, passes, images, labels, F.cross_entropy, torch.Tensor.backward)
        optimizer.step()

    variants: dict[str, Callable[[], object]] = {
        UPDATE: update,
        DRAW: lambda: strategy.plan(next(draws), evaluate),
    }
    with _Threads(threads or 1):
        ratios = compare(step, variants, pairs=1 if quick else 5, warmup=1, name="training step")
    rows: Rows = [{"part": ratio.name, **_times(ratio), "aim": None, "met": None} for ratio in ratios]
    of = {row["part"]: row for row in rows}
    total = {k: of[UPDATE][k] / INTERVAL + of[DRAW][k] for k in ("ratio", "q25", "q75", "ms")}
    rows.append({"part": TOTAL, **total, "aim": OVERHEAD, "met": total["ratio"] < OVERHEAD})
    columns = ("part", "of a step", "q25", "q75", "ms", "aim")
    title = (
        f"Sampler at Ti size: I {INTERVAL}, M {SAMPLES}, {count} images a step and {count // 4} a reward, "
        f"{len(anchors)} anchors, threads {threads or 1}"
    )
    lines = [(*(row[k] for k in ("part", "ratio", "q25", "q75", "ms")), _verdict(row)) for row in rows]
    table(lines, columns, title)
    return rows


def search(run: str) -> Rows:
    """Evaluations that each search of an embedded run took to the held-out loss of one sampler call, by budget.

    Args:
        run: its folder; empty for the newest finished one.

    Raises:
        UserError: there is none, or it tells nothing of searches.
    """
    metrics = Metrics.read(_finished(run) / "metrics.json")
    traces = metrics.extra.get("traces")
    if not isinstance(traces, dict) or not {FOCUSED, *SEARCHES} <= set(traces):
        raise UserError(f"{run or 'the newest run'} tells of no searches; need a run of the embedded experiment")
    rows: Rows = []
    for name, meaning in SEARCHES.items():
        for number, (trace, (goal,)) in enumerate(zip(traces[name], traces[FOCUSED], strict=True), 1):
            reached = evaluations_to_reach([-loss for loss in trace], -goal)
            here = {"budget": number, "search": meaning, "loss of one call": goal, "its lowest": trace[-1]}
            rows.append({**here, "reached after": reached, "evaluations": len(trace), "trace": trace})
    told = sorted(rows, key=lambda row: int(row["budget"]))
    lines = [(*(r[k] for k in ("budget", "search", "loss of one call", "its lowest")), _reached(r)) for r in told]
    columns = ("budget", "search", "one call's loss", "its lowest", "evaluations to it, over the call's one")
    title = f"Held-out loss against evaluations, seed {metrics.seeds[0]}; the searches on the uniform supernet"
    table(lines, columns, title)
    print(f"on digits no factor above {LARGEST_FACTOR} is claimed: the supernets differ as well as the searches")
    return rows


def _finished(run: str) -> Path:
    if run:
        return RunFolder.open(run).path
    for found in RunFolder.started("runs", "focusformer"):
        if found.finished and (found.path / "metrics.json").is_file() and _embedded(found):
            return found.path
    raise UserError("no finished embedded run in runs/focusformer: run `focusformer train` first, or leave out search")


def _embedded(run: RunFolder) -> bool:
    return "traces" in Metrics.read(run.path / "metrics.json").extra


def _reached(row: dict[str, Any]) -> str:
    reached = row["reached after"]
    if reached is None:
        return f"not reached in {row['evaluations']}"
    return f"{reached}" + (f" (above {LARGEST_FACTOR}: not claimed)" if reached > LARGEST_FACTOR else "")


def extracted(quick: bool, threads: int | None = None) -> Rows:
    """The extracted model against the elastic supernet at the same architecture, image to logits."""
    sizes, architecture = SPACES["ti"].sizes, AUTOFORMER["ti"]
    net = forms.supernet_of(forms.OURS, sizes).eval()
    model = extract_subnet(net, architecture)
    stored, left = (sum(p.numel() for p in one.parameters()) for one in (net, model))
    rows: Rows = []
    for batch in (1,) if quick else (1, 8):
        images = forms.images_of(sizes, batch)
        with _Threads(threads or 1), torch.inference_mode():
            first, second = net(images, architecture), model(images)
            differ = float((first - second).abs().max() / first.abs().max())
            elastic = partial(net, images, architecture)
            pairs = 2 if quick else 9
            ratios = compare(partial(model, images), {"elastic": elastic}, pairs=pairs, warmup=2, name="extracted")
        rows += [{"batch": batch, "form": ratio.name, **_times(ratio), "differs": differ} for ratio in ratios]
    columns = ("batch", "form", "time / extracted", "q25", "q75", "ms", "logits differ by")
    title = (
        f"AutoFormer-T, extracted ({left:,} parameters) and inside its supernet ({stored:,}), threads {threads or 1}"
    )
    table([list(row.values()) for row in rows], columns, title)
    return rows


PARTS: dict[str, Callable[[bool, int | None], Rows]] = {
    "training": training,
    "attention": attention,
    "overhead": overhead,
    "extracted": extracted,
}
"""Parts that measure time; `search` reads a run."""


def missed(found: dict[str, Rows]) -> tuple[int, list[str]]:
    """How many aims there are in all parts, and the missed ones in words."""
    judged = [(part, row) for part, rows in found.items() for row in rows if row.get("aim") is not None]
    words = []
    for part, row in judged:
        if not row["met"]:
            where = ", ".join(str(row[k]) for k in ("network", "part", "form") if k in row)
            where += f", threads {row['threads']}" if "threads" in row else ""
            words.append(f"{part}: {where}: {row['ratio']:.3g}, aim {row['aim']:g}")
    return len(judged), words


def draw(found: dict[str, Rows], path: Path) -> None:
    """A panel for each part that was measured; for searches one for each budget."""
    panels: list[Callable[[Any], None]] = []
    for part, drawing in (
        ("training", _draw_training),
        ("attention", _draw_attention),
        ("overhead", _draw_overhead),
        ("extracted", _draw_extracted),
    ):
        if found.get(part):
            panels.append(partial(drawing, found[part]))
    searches = found.get("search", [])
    for budget in sorted({row["budget"] for row in searches}):
        panels.append(partial(_draw_search, [row for row in searches if row["budget"] == budget]))
    with style():
        columns = min(4, len(panels))
        lines = -(-len(panels) // columns)
        drawn, axes = figure(lines, columns, width=1 + 4.6 * columns, height=1 + 3.8 * lines, squeeze=False)
        for ax, panel in zip(axes.flat, panels, strict=False):
            panel(ax)
        for ax in list(axes.flat)[len(panels) :]:
            ax.set_axis_off()
        processor = cpu()
        drawn.suptitle(
            "Above 1, the separable form and the extracted model are faster\n"
            f"(float32, medians of interleaved pairs, {processor['model']})"
        )
        save_figure(drawn, path)


def _draw_training(rows: Rows, ax: Any) -> None:
    shown = [r for r in rows if "again" not in r["form"]]
    names = [f"{r['network']}, {r['form']}\nthreads {r['threads']}, peak {r['peak MiB']:.0f} MiB" for r in shown]
    _bars(ax, names, shown, "time / separable form", "Training step")
    for number, row in enumerate(shown):
        if row["aim"] is not None:
            ax.plot([row["aim"]] * 2, [number - 0.4, number + 0.4], color=COLORS[1])


def _draw_attention(rows: Rows, ax: Any) -> None:
    shown = [r for r in rows if "again" not in r["form"]]
    names = [f"{r['tokens']} tokens, {r['form']}\n{r['pass']}" for r in shown]
    _bars(ax, names, shown, "time / separable form", "Relative-position attention alone")


def _draw_overhead(rows: Rows, ax: Any) -> None:
    shown = [r for r in rows if "again" not in r["part"]]
    names = [r["part"].replace(", ", ",\n") for r in shown]
    ax.barh(names, [100 * r["ratio"] for r in shown], color=COLORS[2])
    ax.axvline(100 * OVERHEAD, color=COLORS[1], label=f"aim: by step below {OVERHEAD:.0%}")
    ax.set(xlabel="% of a training step", title=f"Sampler: an update every {INTERVAL} steps")
    ax.legend(fontsize=8)


def _draw_extracted(rows: Rows, ax: Any) -> None:
    shown = [r for r in rows if "again" not in r["form"]]
    names = [f"{r['form']}, batch {r['batch']}" for r in shown]
    _bars(ax, names, shown, "time / extracted model", "Extracted model and supernet")


def _bars(ax: Any, names: Sequence[str], rows: Rows, label: str, title: str) -> None:
    ax.barh(names, [r["ratio"] for r in rows], color=COLORS[0])
    ax.axvline(1, color="grey", linewidth=1)
    ax.tick_params(axis="y", labelsize=7)
    ax.set(xlabel=label, title=title)


def _draw_search(rows: Rows, ax: Any) -> None:
    for color, row in zip(COLORS, rows, strict=False):
        counts = range(1, len(row["trace"]) + 1)
        ax.plot(counts, row["trace"], drawstyle="steps-post", color=color, label=f"{row['search']}: {_reached(row)}")
    goal = rows[0]["loss of one call"]
    ax.plot([1], [goal], "*", markersize=12, color=COLORS[len(rows)], label="one sampler call")
    ax.axhline(goal, color="grey", linewidth=1, linestyle=":")
    ax.set(
        xscale="log", xlabel="evaluations", ylabel="lowest held-out loss", title=f"Search, budget {rows[0]['budget']}"
    )
    ax.legend(fontsize=7)


class _Threads:
    """That many threads of torch inside the block, one behind it."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> None:
        torch.set_num_threads(self.count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(1)


def _threads(single: bool, threads: int | None) -> list[int]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [threads] if threads else [1] if single or cores < 2 else [1, 2]


def _at_least(value: float, aim: float | None) -> dict[str, Any]:
    return {"aim": aim, "met": None if aim is None else value >= aim}


def _verdict(row: dict[str, Any]) -> str:
    return "" if row["aim"] is None else f"{row['aim']:g}: {'met' if row['met'] else 'MISSED'}"


def _times(ratio: Ratio) -> dict[str, float]:
    return {"ratio": ratio.median, "q25": ratio.q25, "q75": ratio.q75, "ms": 1e3 * ratio.seconds}
