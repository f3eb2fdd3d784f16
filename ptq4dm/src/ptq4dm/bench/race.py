"""Parts of `ptq4dm bench`: packed integers against what a user can install, files, and the method's own costs.

Every figure of time is a ratio of one run, interleaved. "Times" of the packed form are over the FASTEST float32 form
here, which is named; quantising activations is always part of the time. Simulated quantisation is raced as well, under
its name, to show that it saves nothing.
"""

import copy
import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from paperkit.results.measure import compare
from paperkit.results.report import table
from ptq4dm.bench import forms
from ptq4dm.bench.forms import EAGER, FLOAT32, INT8, Form, Inputs
from ptq4dm.deployment import kernels
from ptq4dm.deployment.exporting import Call
from ptq4dm.deployment.packed_folder import file_sizes
from ptq4dm.deployment.packed_unet import pack
from ptq4dm.experiment.network import digit_unet, train_network, trained
from ptq4dm.experiment.sampler import new_scheduler, predictor, start_noise, walk
from ptq4dm.experiment.settings import ExperimentConfig
from ptq4dm.method.bops import count_cost
from ptq4dm.method.calibration import Records
from ptq4dm.method.noise_statistics import StatisticsAccumulator
from ptq4dm.method.quant_model import QuantConfig, initialise_ranges, quantize
from ptq4dm.method.range_search import search_range
from ptq4dm.models.ddim_scheduler import PTQDScheduler
from ptq4dm.models.latent_diffusion import MODELS, unet_on_meta

Rows = list[dict[str, Any]]
Step = Callable[[], object]
PACKED, SKIPS, SIMULATED = "packed W8A8", "packed W8A8, 8-bit skip and attention", "simulated W8A8"
AIMS = {"vnni": 1.5, "avxvnni": 1.5}
"""Times over the fastest float32, by tier; elsewhere 1."""
LDM: dict[str, Any] = dict(
    in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=(64, 128, 192, 320), attention_head_dim=1,
    down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
    up_block_types=(*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"), cross_attention_dim=512,
)  # fmt: skip
"""LDM-4 for ImageNet with a third of its width."""
STEPS = 20
"""Of the sampler, without noise, behind the distances."""
TRAINED = ExperimentConfig(steps=300, seeds=1)
"""Enough for digits that can be told from noise."""
PREPARING, RACING = 100.0, 40.0
"""Seconds for making the rivals of one case, and for timing them, about."""


@dataclass(frozen=True)
class Case:
    """A network to race, and calls of it (sample, time steps, context) of the batch that is raced."""

    name: str
    unet: nn.Module
    calls: list[Inputs]
    sampled: bool = False

    def records(self) -> Records:
        """The calls in one, for ranges."""
        return Records(*(torch.cat(parts) for parts in zip(*self.calls, strict=True)))


@functools.cache
def trained_digits(quick: bool) -> nn.Module:
    """The U-Net of the embedded experiment after a short training."""
    config, threads = replace(TRAINED, steps=20) if quick else TRAINED, torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network gains nothing from more
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        train_network(0, Path(folder), config, lambda steps: None)
        torch.set_num_threads(threads)
        return trained(Path(folder), config).requires_grad_(False)


def digits(images: int, quick: bool) -> Case:
    """Calls of it along its own sampling."""
    unet, walked = trained_digits(quick), list[Inputs]()
    for t, x, _, _ in walk(predictor(unet), new_scheduler(STEPS), start_noise(images, 1, 1)):
        walked.append((x, torch.full((images,), t)))
    name = f"digits U-Net, {images} image{'s' * (images > 1)}"
    return Case(name, unet, walked[STEPS // 2 :: 5] + walked[::5], sampled=images > 1)


def latent(images: int = 2, side: int = 32) -> Case:
    """An LDM-4-shaped U-Net of reduced width with random weights, on noise."""
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(sample_size=side, **LDM)
    draw = torch.Generator().manual_seed(1)
    call = (torch.randn(images, 3, side, side, generator=draw), torch.full((images,), 501),
            torch.randn(images, 1, 512, generator=draw))  # fmt: skip
    return Case(f"LDM-4-shaped U-Net, {images} x 3 x {side} x {side}", unet.eval().requires_grad_(False), [call])


def quantised(case: Case, config: QuantConfig) -> nn.Module:
    """A copy with ranges of the case's calls."""
    found = quantize(copy.deepcopy(case.unet), config)
    records = case.records()
    initialise_ranges(found, records, len(records))
    return found


def network(quick: bool, threads: int) -> Rows:
    """One call of a U-Net: packed integers against every rival, with what each does to the result."""
    rows: Rows = []
    made: list[Callable[[], Case]] = [partial(digits, 64, quick)]
    if not quick:
        made += [partial(digits, 1, quick), latent]
    with torch.no_grad():
        for make in made:
            rows += race(case := make(), threads, quick)
            show([row for row in rows if row["case"] == case.name], f"{case.name}, threads {threads}")
    return rows


def race(case: Case, threads: int, quick: bool) -> Rows:
    """Times, agreement and, where it is sampled, the distance of the samples."""
    inputs = case.calls[0]
    rivals = forms.forms(case.unet, case.calls, threads, PREPARING, print)
    simulated = quantised(case, QuantConfig(8, 8))
    packed = {PACKED: pack(simulated), SKIPS: pack(quantised(case, QuantConfig(8, 8, skip_bits=8)))}
    every: dict[str, Form] = {name: Call(unet) for name, unet in packed.items()}
    every |= {**rivals, SIMULATED: Call(simulated)}
    steps: dict[str, Step] = {name: partial(form, *inputs) for name, form in every.items()}
    seconds = sum(_seconds(step) for step in steps.values()) + len(steps) * _seconds(steps[PACKED])
    pairs = 3 if quick else min(max(int(RACING / seconds), 3), 11)
    ratios = compare(steps[PACKED], {name: step for name, step in steps.items() if name != PACKED}, pairs, 1,
                     name=PACKED)  # fmt: skip
    rows = judged({"part": "network", "case": case.name, "threads": threads}, ratios)
    expected = rivals[EAGER](*inputs)
    drawn = {name: sampled(form, case) for name, form in every.items()} if case.sampled else {}
    for row in rows:
        form = every[row["form"]]
        row["error"] = _distance(form(*inputs), expected) ** 0.5 / float(expected.square().mean().sqrt())
        row["paired distance"] = _distance(drawn[row["form"]], drawn[EAGER]) if drawn else None
    apart = _distance(every[PACKED](*inputs), every[SIMULATED](*inputs)) ** 0.5 / float(expected.square().mean().sqrt())
    print(f"{case.name}: {packed[PACKED].engine()}; packed and simulated W8A8 differ by {apart:.2g} of the outputs' "
          f"root mean square; {pairs} pairs")  # fmt: skip
    return rows


def sampled(form: Form, case: Case) -> Tensor:
    """Images (B, C, H, W) after all steps, always from the same noise."""
    start = start_noise(len(case.calls[0][0]), 1, 7)
    *_, (_, _, _, images) = walk(lambda x, t: form(x, torch.full((len(x),), t)), new_scheduler(STEPS), start)
    return images


def _distance(a: Tensor, b: Tensor) -> float:
    """Mean square."""
    return float((a - b).square().mean())


def _seconds(step: Step) -> float:
    step()
    start = time.monotonic()
    step()
    return time.monotonic() - start


def judged(case: dict[str, Any], ratios: Any) -> Rows:
    """Rows of a race, with what was aimed at."""
    fastest = min((r for r in ratios if r.name in FLOAT32), key=lambda r: r.median)
    rows: Rows = []
    for r in ratios:
        name = PACKED if r.name.endswith(" again") else r.name
        times = fastest.median / (1.0 if name == PACKED else r.median)
        aim = AIMS.get(kernels.tier(), 1.0) if name == PACKED else None
        met = times >= aim if aim is not None else r.median > 1 if name in INT8 else None
        rows.append({**case, "form": name, "ms": 1e3 * r.seconds, "time / packed": r.median, "q25": r.q25, "q75": r.q75,
                     "times": times, "over": fastest.name, "aim": aim, "met": met})  # fmt: skip
    return rows


def show(rows: Rows, title: str) -> None:
    """A table of one case."""
    lines = [(r["form"], f"{r['ms']:.4g}", f"{r['time / packed']:.2f}", f"{r['q25']:.2f}", f"{r['q75']:.2f}",
              f"{r['times']:.2f}", f"{r['error']:.2g}", "" if r["paired distance"] is None else
              f"{r['paired distance']:.2g}", verdict(r)) for r in rows]  # fmt: skip
    columns = ("form", "ms", "time / packed", "q25", "q75", "times as fast", "error", "paired distance", "aim")
    table(lines, columns, f"{title} (times as fast: as {rows[0]['over']}, the fastest float32 here; error: of one call "
          "to torch float32, relative; paired distance: of samples of the same noise)")  # fmt: skip


def verdict(row: dict[str, Any]) -> str:
    """The aim of a row, and whether it was met."""
    if row["met"] is None:
        return ""
    aim = f"{row['aim']:g}" if row["aim"] is not None else "slower than packed"
    return f"{aim}: {'met' if row['met'] else 'MISSED'}"


def size(quick: bool, threads: int) -> Rows:
    """Bytes of files with the rest in fp16: the three LDM models by count, the digits U-Net as packed."""
    rows: Rows = []
    for name in () if quick else MODELS:
        unet = unet_on_meta(name)
        config: Any = unet.config
        side, channels, wide = config.sample_size, config.in_channels, config.get("cross_attention_dim")
        example = Records(
            torch.zeros(1, channels, side, side), torch.zeros(1), torch.zeros(1, 1, wide) if wide else None
        )
        for bits, aim in {8: 0.27, 4: 0.15}.items():
            cost = count_cost(unet, example, QuantConfig(bits, 8))
            share, aimed = cost.bytes(16) / cost.float_bytes(), aim if name == "cin256-v2" else None
            rows.append({"part": "size", "case": name, "form": f"W{bits}", "share": share, "aim": aimed,
                         "met": None if aimed is None else share <= aimed})  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    small = Case("digits", digit_unet().eval(), [(torch.randn(4, 1, 8, 8, generator=draw), torch.full((4,), 501))])
    for form, quantisation in {"W8": QuantConfig(8, 8), "W4": QuantConfig(4, 8),
                         "W4, 8-bit skip and attention": QuantConfig(4, 8, skip_bits=8)}.items():  # fmt: skip
        sizes = file_sizes(pack(quantised(small, quantisation)))
        rows.append({"part": "size", "case": "digits", "form": form, "share": sizes["fp16"] / sizes["float32"],
                     "aim": None, "met": None})  # fmt: skip
    lines = [(r["case"], r["form"], f"{r['share']:.1%}", "" if r["aim"] is None else f"{r['aim']:.0%}: "
              f"{'met' if r['met'] else 'MISSED'}") for r in rows]  # fmt: skip
    table(lines, ("network", "bits", "of float32", "aim"), "Packed files, rest in fp16")
    return rows


def search(quick: bool, threads: int) -> Rows:
    """Ranges of every output channel at once against a loop over channels."""
    weight = torch.randn(64 if quick else 192, 192, 3, 3, generator=torch.Generator().manual_seed(0))

    def loop() -> list[Any]:
        return [plain_search(channel) for channel in weight]

    (_, ratio) = compare(partial(search_range, weight, 8, channel_wise=True), {"loop over channels": loop}, pairs=3,
                         warmup=1, name="at once")  # fmt: skip
    row: dict[str, Any]
    row = {"part": "search", "case": f"weight {tuple(weight.shape)}", "form": "channel-wise search", "ms": 1e3
           * ratio.baseline_seconds, "times": ratio.median, "q25": ratio.q25, "q75": ratio.q75, "aim": 50.0,
           "met": ratio.median >= 50}  # fmt: skip
    table([("at once", f"{row['ms']:.4g}", ""), ("loop over channels", f"{1e3 * ratio.seconds:.4g}",
            f"{ratio.median:.1f} times, aim {verdict(row)}")], ("search", "ms", ""), row["case"])  # fmt: skip
    return [row]


def plain_search(x: Tensor, bits: int = 8) -> tuple[float, float]:
    """The search of one channel as the authors write it: 80 passes in Python."""
    top, best, found = 2**bits - 1, 1e10, (1.0, 0.0)
    high, low = x.max(), x.min()
    for i in range(80):
        factor = 1 - 0.01 * i
        delta = (high - low) * factor / top
        zero = (-low * factor / delta).round()
        grid = ((x / delta).round() + zero).clamp(0, top).sub(zero).mul(delta)
        score = float((x - grid).abs().pow(2.4).mean())
        if score < best:
            best, found = score, (float(delta), float(zero))
    return found


def statistics(quick: bool, threads: int) -> Rows:
    """What streaming keeps of pairs of predictions against the stored pairs, at equal result."""
    batches, batch, shape = 4 if quick else 16, 16, (3, 32, 32)
    draw = torch.Generator().manual_seed(0)
    sums, kept = StatisticsAccumulator(), []
    for _ in range(batches):
        noise = torch.randn(batch, *shape, generator=draw)
        other = noise * 1.01 + 0.05 * torch.randn(batch, *shape, generator=draw)
        sums.add(501, noise, other)
        kept.append((noise, other))
    found = sums.finish({})
    noise, other = (torch.cat([pair[i] for pair in kept]).double().flatten() for i in range(2))
    error = other - noise
    slope = float(((noise - noise.mean()) * (error - error.mean())).sum() / (noise - noise.mean()).pow(2).sum())
    stored = 2 * noise.numel() * 4
    streamed = sum(value.numel() * value.element_size() for value in sums.state().values())
    same = abs(slope - float(found.k[0])) < 1e-6
    row: dict[str, Any]
    row = {"part": "statistics", "case": f"{batches * batch} pairs of {shape}", "form": "streaming sums", "bytes":
           streamed, "stored bytes": stored, "times": stored / max(streamed, 1), "aim": None, "met": same}  # fmt: skip
    table([("stored pairs", f"{stored:,}"), ("streaming sums", f"{streamed:,}")], ("statistics", "bytes a step"),
          f"{row['case']}; slope equal to 1e-6: {'yes' if same else 'NO'}")  # fmt: skip
    return [row]


def scheduler(quick: bool, threads: int) -> Rows:
    """What the correction adds to a scheduler step, as a share of one call of the LDM-4-shaped network."""
    case = latent()
    (call,) = case.calls
    x, shape = call[0], call[0].shape[1:]
    schedule: dict[str, Any] = dict(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear",
                                    clip_sample=False, set_alpha_to_one=False, steps_offset=1)  # fmt: skip
    plain, corrected = PTQDScheduler(**schedule), PTQDScheduler(**schedule)
    for made in (plain, corrected):
        made.set_timesteps(20)
    sums = StatisticsAccumulator()
    torch.manual_seed(0)
    for step in plain.timesteps.tolist():
        noise = torch.randn(4, *shape)
        sums.add(step, noise, 1.01 * noise + 0.1 * torch.randn(4, *shape))
    corrected.set_statistics(sums.finish({}))
    noise = torch.randn(2, *shape)
    with torch.no_grad():
        ratios = compare(
            partial(Call(case.unet), *call),
            {"plain step": lambda: plain.step(noise, 501, x, eta=1.0), "corrected step":
             lambda: corrected.step(noise, 501, x, eta=1.0)}, pairs=5, name="U-Net call")  # fmt: skip
    _, first, second = ratios
    added = (second.seconds - first.seconds) / first.baseline_seconds
    row: dict[str, Any]
    row = {"part": "scheduler", "case": "LDM-4-shaped U-Net, torch float32", "form": "correction added to a step",
           "share": added, "aim": 0.02, "met": added < 0.02}  # fmt: skip
    table([("U-Net call", f"{1e3 * first.baseline_seconds:.3f}"), ("plain step", f"{1e3 * first.seconds:.3f}"),
           ("corrected step", f"{1e3 * second.seconds:.3f}")], ("", "ms"),
          f"The correction adds {added:.2%} of a U-Net call (aim: below 2 %)")  # fmt: skip
    return [row]


PARTS: dict[str, Callable[[bool, int], Rows]] = {
    "network": network, "size": size, "search": search, "statistics": statistics, "scheduler": scheduler,
}  # fmt: skip


def missed(found: dict[str, Rows]) -> tuple[int, list[str]]:
    """How many aims there are in all parts, and the missed ones in words."""
    aimed = [row for rows in found.values() for row in rows if row["met"] is not None]
    return len(aimed), [f"{row['part']}: {row['case']}, {row['form']}" for row in aimed if not row["met"]]
