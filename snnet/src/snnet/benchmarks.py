"""What `snnet bench` measures, each as ratios of one run: least squares, evaluation, switching, and a training step.

Everything runs on random weights and made images or activations: costs do not depend on them.
"""

import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from paperkit.checkpoints import load_strict, read_weights, save_weights
from paperkit.measure import Ratio, compare
from snnet.anchors import SNNet
from snnet.least_squares import KeptActivations, Position, StreamedProducts, ends, solve_pinv
from snnet.losses import StitchLoss

DEIT = [f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")]
TOKENS = 197


def least_squares(images: int) -> dict[str, Any]:
    """All 11 layers (34 cuts) from DeiT-S to DeiT-B on made activations: seconds, residuals and memory of each way.

    The activations are low-rank signals in noise, made anew batch by batch from a seed, so the streaming ways never
    hold more than one batch of 100 images. The pseudo-inverse holds all of them.
    """
    network = SNNet(DEIT[1:])
    steps = network.stitch_steps()
    cuts = [(step, cut) for step, found in steps.items() for cut in found]
    batches = max(images // 100, 1)
    seconds: dict[str, float] = {}
    residuals: dict[str, float] = {}
    memory: dict[str, float] = {}

    for label, products, precision in (
        ("streamed, float64", torch.float64, "highest"),
        ("streamed, float32 products", torch.float32, "highest"),
        ("streamed, float32 products, medium", torch.float32, "medium"),
    ):
        torch.set_float32_matmul_precision(precision)
        streamed, spent, start = StreamedProducts(network, products), 0.0, _resident()
        for batch in range(batches):
            made = made_activations(network, batch)
            before = time.perf_counter()
            streamed.add(made)
            spent += time.perf_counter() - before
            memory[label] = max(memory.get(label, 0.0), _resident() - start)
        before = time.perf_counter()
        solutions = {step: streamed.solve(step, found, joint=False) for step, found in steps.items()}
        seconds[label] = spent + time.perf_counter() - before
        if label == "streamed, float64":
            exact = streamed
        residuals[label] = _rms([exact.residual(step, steps[step], solutions[step]) for step in steps])
    torch.set_float32_matmul_precision("highest")

    kept, start = KeptActivations(network), _resident()
    for batch in range(batches):
        kept.add(made_activations(network, batch))
    for position in kept.needed:
        kept.rows(position)
    before = time.perf_counter()
    solutions = {step: kept.solve(step, found, joint=False) for step, found in steps.items()}
    shared = "pinv, one per front block"
    seconds[shared] = time.perf_counter() - before
    memory[shared] = _resident() - start
    residuals[shared] = _rms([exact.residual(step, steps[step], solutions[step].double()) for step in steps])

    before = time.perf_counter()
    for step, cut in cuts:
        front, end = ends(step, cut)
        solve_pinv(kept.rows(front), kept.rows(end))
    seconds["pinv, one per cut (as released)"] = time.perf_counter() - before
    return {
        "images": 100 * batches,
        "cuts": len(cuts),
        "seconds": seconds,
        "residual": residuals,
        "memory_bytes": memory,
    }


def made_activations(network: SNNet, batch: int) -> dict[Position, Tensor]:
    """100 images' worth of rows at every position of two DeiTs: 64 common directions through fixed maps, plus noise."""
    generator = torch.Generator().manual_seed(batch)
    common = torch.randn(100 * TOKENS, 64, generator=generator)
    made = {}
    for anchor, width in enumerate((384, 768)):
        for block in range(-1, 12):
            mix = torch.randn(64, width, generator=torch.Generator().manual_seed(1000 * anchor + block + 1))
            made[anchor, 0, block] = torch.randn(100 * TOKENS, width, generator=generator).add_(common @ mix)
    return made


def evaluation(batch: int, pairs: int) -> list[Ratio]:
    """All 71 DeiT configurations on one batch, with shared prefixes against one by one. The bound is 1 / 1.256."""
    network, images = SNNet(DEIT).eval(), torch.randn(batch, 3, 224, 224)
    ids = range(network.num_configurations)

    def one_by_one() -> None:
        with torch.inference_mode():
            for config_id in ids:
                network(images, config_id)

    def shared() -> None:
        with torch.inference_mode():
            for _ in network.forward_many(images, ids):
                pass

    ratios = compare(one_by_one, {"shared prefixes": shared}, pairs=pairs, warmup=1, name="one by one")
    return ratios


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


def training_step(batch: int, pairs: int) -> dict[str, list[Ratio]]:
    """One joint step of DeiT-Ti/S at several stitches per step, and a RegNetY-160 teacher run in three ways."""
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
    teacher = timm.create_model("regnety_160").eval()
    compiled = timm.create_model("regnety_160").eval()
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


def _median(work: Callable[[], object], times: int) -> float:
    found = []
    for _ in range(times):
        before = time.perf_counter()
        work()
        found.append(time.perf_counter() - before)
    return sorted(found)[times // 2]


def _rms(values: list[float]) -> float:
    return (sum(value * value for value in values) / len(values)) ** 0.5


def _resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
