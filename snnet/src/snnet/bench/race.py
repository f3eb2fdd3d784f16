"""What `snnet bench` measures, each as ratios of one run: least squares, evaluation, switching, and a training step.

Everything runs on random weights and made images or activations: costs do not depend on them.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from paperkit.data.seeding import seed_of
from paperkit.files.weights import load_strict, read_weights, save_weights
from paperkit.results.measure import Ratio, compare, print_ratios
from paperkit.results.report import COLORS, figure, save_figure, style, table
from snnet.method.least_squares import Position, StreamedProducts, ends, solve_pinv, with_bias
from snnet.method.losses import StitchLoss
from snnet.models.anchors import SNNet

DEIT = [f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")]
TOKENS = 197
RELEASED_WAY = "pinv, one per cut (as released)"


def race(parts: Sequence[str], images: int, batch_size: int, pairs: int, quick: bool = False) -> dict[str, Any]:
    """Measure the given parts, print a table of each, and return what bench.json holds.

    Args:
        parts: of `PARTS` (in `commands.bench`).
        images: made images for least squares.
        batch_size: images per timed evaluation pass; a training step has 8 times as many.
        pairs: timed pairs per comparison.
        quick: DeiT-Ti/S and a small teacher instead of the networks that the figures are of.
    """
    sections: dict[str, Any] = {}
    if "switching" in parts:
        times = sections["switching"] = switching()
        rows = [(name, value, value / times["set_stitch"]) for name, value in times.items()]
        table(rows, ("way", "microseconds", "x"), "Switching to another operating point")
    if "evaluation" in parts:
        what = "All of DeiT-Ti/S" if quick else "All 71 DeiT configurations"
        bound = "" if quick else " (bound: time x 0.796)"
        ratios = evaluation(DEIT[:2] if quick else DEIT, batch_size, pairs)
        print_ratios(ratios, f"{what}, batch {batch_size}{bound}")
        sections["evaluation"] = [asdict(ratio) for ratio in ratios]
    if "training" in parts:
        for name, ratios in training_step("regnety_002" if quick else "regnety_160", 8 * batch_size, pairs).items():
            print_ratios(ratios, f"Training step, {name}, batch {8 * batch_size}")
            sections[name] = [asdict(ratio) for ratio in ratios]
    if "least_squares" in parts:
        found = sections["least_squares"] = least_squares(images)
        each = found["seconds_per_cut"]
        columns = ("way", "seconds a cut", "x faster", "cuts measured", "relative residual")
        ways = [
            (name, value, each[RELEASED_WAY] / value, found["measured_cuts"][name], found["residual"].get(name))
            for name, value in each.items()
        ]
        table(ways, columns, f"Least squares, DeiT-S to DeiT-B, {found['images']} images of {TOKENS} tokens")
    return sections


def least_squares(images: int, per_cut: int = 6) -> dict[str, Any]:
    """All 11 layers (34 cuts) from DeiT-S to DeiT-B on made activations: seconds, residuals and memory of each way.

    The activations are low-rank signals in noise, a function of position and batch, so that no way holds more of them
    than it needs: the streamed ways one batch of 100 images, a pseudo-inverse all images at two positions. Making them
    is not timed.

    Args:
        images: how many images' worth of activations.
        per_cut: cuts on which the way of the released code, a pseudo-inverse for every cut, is measured.
    """
    network = SNNet(DEIT[1:])
    steps = network.stitch_steps()
    positions: list[Position] = [(anchor, 0, block) for anchor in (0, 1) for block in range(-1, 12)]
    cuts = [(step, cut) for step, found in steps.items() for cut in found]
    batches = max(images // 100, 1)
    seconds: dict[str, float] = {}
    residuals: dict[str, float] = {}
    exact: StreamedProducts | None = None
    for label, products, precision in (
        ("streamed, float64", torch.float64, "highest"),
        ("streamed, float32 products", torch.float32, "highest"),
        ("streamed, float32 products, medium", torch.float32, "medium"),
    ):
        torch.set_float32_matmul_precision(precision)
        streamed, spent = StreamedProducts(network, products), 0.0
        for batch in range(batches):
            made = {position: made_rows(position, batch) for position in positions}
            before = time.perf_counter()
            streamed.add(made)
            spent += time.perf_counter() - before
        before = time.perf_counter()
        solutions = {step: streamed.solve(step, found, joint=False) for step, found in steps.items()}
        seconds[label] = spent + time.perf_counter() - before
        exact = exact or streamed
        residuals[label] = _rms([exact.residual(step, steps[step], solutions[step]) for step in steps])
    torch.set_float32_matmul_precision("highest")
    assert exact is not None

    shared = "pinv, one per front block"
    sums = {step: torch.zeros(385, 768, dtype=torch.float64) for step in steps}
    spent = 0.0
    for front in sorted({ends(step, cut)[0] for step, cut in cuts}):
        x = all_rows(front, batches)
        before = time.perf_counter()
        inverse = torch.linalg.pinv(with_bias(x))
        spent += time.perf_counter() - before
        for step, cut in cuts:
            if ends(step, cut)[0] == front:
                y = all_rows(ends(step, cut)[1], batches)
                before = time.perf_counter()
                sums[step] += inverse @ y / len(steps[step])
                spent += time.perf_counter() - before
    seconds[shared] = spent
    residuals[shared] = _rms([exact.residual(step, steps[step], sums[step]) for step in steps])

    spent = 0.0
    for step, cut in cuts[:per_cut]:
        x, y = (all_rows(position, batches) for position in ends(step, cut))
        before = time.perf_counter()
        solve_pinv(x, y)
        spent += time.perf_counter() - before
    return {
        "images": 100 * batches,
        "cuts": len(cuts),
        "seconds_per_cut": {
            **{name: value / len(cuts) for name, value in seconds.items()},
            RELEASED_WAY: spent / per_cut,
        },
        "measured_cuts": {name: len(cuts) for name in seconds} | {RELEASED_WAY: per_cut},
        "residual": residuals,
    }


def made_rows(position: Position, batch: int) -> Tensor:
    """100 images' worth of rows at one position of two DeiTs: 64 directions common to all positions, plus noise."""
    anchor, _, block = position
    common = torch.randn(100 * TOKENS, 64, generator=torch.Generator().manual_seed(batch))
    own = torch.Generator().manual_seed(seed_of(anchor, block, batch))
    width = (384, 768)[anchor]
    mix = torch.randn(64, width, generator=torch.Generator().manual_seed(seed_of(anchor, block)))
    return torch.randn(100 * TOKENS, width, generator=own).add_(common @ mix)


def all_rows(position: Position, batches: int) -> Tensor:
    """The rows of every batch at one position."""
    return torch.cat([made_rows(position, batch) for batch in range(batches)])


def evaluation(anchors: Sequence[str], batch: int, pairs: int) -> list[Ratio]:
    """Every configuration on one batch, with shared prefixes against one by one. For all 71 the bound is 1 / 1.256."""
    network, images = SNNet(anchors).eval(), torch.randn(batch, 3, 224, 224)
    ids = range(network.num_configurations)

    def one_by_one() -> None:
        with torch.inference_mode():
            for config_id in ids:
                network(images, config_id)

    def shared() -> None:
        with torch.inference_mode():
            for _ in network.forward_many(images, ids):
                pass

    return compare(one_by_one, {"shared prefixes": shared}, pairs=pairs, warmup=1, name="one by one")


def switching() -> dict[str, float]:
    """Microseconds: choosing a stitch, against reading a DeiT-S from disk (page cache warm) into a built model."""
    network = SNNet(DEIT)
    model = timm.create_model(DEIT[1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_weights(path, model.state_dict())
        reload = _median(lambda: load_strict(model, read_weights(path), str(path)), 5)
    switch = _median(lambda: network.set_stitch(40), 1000)
    return {"set_stitch": switch * 1e6, "reload DeiT-S": reload * 1e6}


def training_step(teacher_name: str, batch: int, pairs: int) -> dict[str, list[Ratio]]:
    """One joint step of DeiT-Ti/S at several stitches per step, and a teacher run in three ways."""
    network = SNNet(DEIT[:2]).train()
    images, labels = torch.randn(batch, 3, 224, 224), torch.randint(0, 1000, (batch,))
    loss = StitchLoss(distillation="none")
    ids = [2 + 4 * i for i in range(8)]

    def step(count: int) -> Callable[[], None]:
        def run() -> None:
            network.zero_grad()
            loss(network, images, labels, ids[:count], None).backward()

        return run

    found = {
        "stitches per step": compare(
            step(1),
            {f"{n} stitches per step": step(n) for n in (4, 8)},
            pairs=pairs,
            warmup=1,
            name="1 stitch per step",
        )
    }
    teacher = timm.create_model(teacher_name).eval()
    compiled = timm.create_model(teacher_name).eval()
    compiled.compile()
    found["teacher"] = compare(
        forward(teacher, images),
        {"teacher compiled": forward(compiled, images), "teacher bf16": forward(teacher, images, torch.bfloat16)},
        pairs=pairs,
        warmup=1,
        name="teacher eager",
    )
    return found


def forward(model: nn.Module, images: Tensor, dtype: torch.dtype | None = None) -> Callable[[], object]:
    """A forward pass without gradients, under autocast if a type is given."""

    def run() -> object:
        with torch.no_grad(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            return model(images)

    return run


def draw_bench(sections: Mapping[str, Any], path: Path) -> Path:
    """Every way as a bar: how many times as fast as the plain way it is."""
    bars: list[tuple[str, float]] = []
    if "least_squares" in sections:
        seconds = sections["least_squares"]["seconds_per_cut"]
        bars += [(f"least squares: {name}", seconds[RELEASED_WAY] / value) for name, value in seconds.items()]
    for part in ("evaluation", "stitches per step", "teacher"):
        bars += [(r["name"], 1 / r["median"]) for r in sections.get(part, [])]
    with style():
        drawn, axes = figure(width=7.2, height=1.2 + 0.32 * max(len(bars), 1))
        axes.barh([name for name, _ in bars], [value for _, value in bars], color=COLORS[0])
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.invert_yaxis()
        axes.set(
            xlabel="times as fast as the plain way (1: as fast)",
            title="Time of the plain way, divided by the time of each other way",
        )
        save_figure(drawn, path)
    return path


def _median(work: Callable[[], object], times: int) -> float:
    found = []
    for _ in range(times):
        before = time.perf_counter()
        work()
        found.append(time.perf_counter() - before)
    return sorted(found)[times // 2]


def _rms(values: list[float]) -> float:
    return (sum(value * value for value in values) / len(values)) ** 0.5
