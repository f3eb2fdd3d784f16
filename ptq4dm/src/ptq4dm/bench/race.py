"""Parts of `ptq4dm bench`: packed integers against what a user can install, files, and the method's own costs.

Every figure of time is a ratio of one run, interleaved. "Times" of the packed form are over the FASTEST float32 form
here, which is named; quantising activations is always part of the time. Simulated quantisation is raced as well, under
its name, to show that it saves nothing.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from paperkit.results.measure import compare
from paperkit.results.report import table
from ptq4dm.bench import forms
from ptq4dm.bench.forms import FLOAT32, INT8, Step
from ptq4dm.deployment import kernels
from ptq4dm.deployment.exporting import Call
from ptq4dm.deployment.packed_folder import file_sizes
from ptq4dm.deployment.packed_unet import pack
from ptq4dm.experiment.network import digit_unet
from ptq4dm.method.bops import count_cost
from ptq4dm.method.calibration import Records
from ptq4dm.method.noise_statistics import StatisticsAccumulator
from ptq4dm.method.quant_model import QuantConfig, initialise_ranges, quantize
from ptq4dm.method.range_search import search_range
from ptq4dm.models.ddim_scheduler import PTQDScheduler
from ptq4dm.models.latent_diffusion import MODELS, unet_on_meta

Rows = list[dict[str, Any]]
PACKED, SKIPS, SIMULATED = "packed W8A8", "packed W8A8, 8-bit skip and attention", "simulated W8A8"
AIMS = {"vnni": 1.5, "avxvnni": 1.5}
"""Times over the fastest float32, by tier; elsewhere 1."""
LDM: dict[str, Any] = dict(
    in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=(64, 128, 192, 320), attention_head_dim=1,
    down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
    up_block_types=(*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"), cross_attention_dim=512,
)  # fmt: skip
"""LDM-4 for ImageNet with a third of its width."""


def digits() -> tuple[nn.Module, tuple[int, ...], None]:
    """The U-Net of the embedded experiment, its sample and its context."""
    return digit_unet().eval(), (1, 8, 8), None


def latent(side: int = 32) -> tuple[nn.Module, tuple[int, ...], tuple[int, int]]:
    """An LDM-4-shaped U-Net of reduced width."""
    unet: Any = UNet2DConditionModel(sample_size=side, **LDM)
    return unet.eval(), (3, side, side), (1, 512)


NETWORKS: dict[str, tuple[Callable[[], Any], int]] = {
    "digits U-Net, 64 images": (digits, 64),
    "digits U-Net, 1 image": (digits, 1),
    "LDM-4-shaped U-Net, 2 x 3 x 32 x 32": (latent, 2),
}
"""What is raced: network, batch."""


def quantised(unet: nn.Module, config: QuantConfig, inputs: tuple[Tensor, ...]) -> nn.Module:
    """A copy with ranges from a few made records."""
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(4, *inputs[0].shape[1:], generator=draw)
    context = torch.randn(4, *inputs[2].shape[1:], generator=draw) if len(inputs) > 2 else None
    found = quantize(copy.deepcopy(unet), config)
    initialise_ranges(found, Records(x, torch.tensor([1, 251, 501, 751]), context), 4)
    return found


def network(quick: bool, threads: int) -> Rows:
    """One call of a U-Net: packed integers against every rival."""
    rows: Rows = []
    for name, (make, batch) in NETWORKS.items():
        if quick and name != next(iter(NETWORKS)):
            continue
        torch.manual_seed(0)
        unet, shape, context = make()
        unet.requires_grad_(False)
        draw = torch.Generator().manual_seed(1)
        inputs: tuple[Tensor, ...] = (torch.randn(batch, *shape, generator=draw), torch.full((batch,), 501))
        if context is not None:
            inputs += (torch.randn(batch, *context, generator=draw),)
        with torch.no_grad():
            rivals = forms.steps(unet, inputs, threads, print)
            simulated = quantised(unet, QuantConfig(8, 8), inputs)
            engines = {PACKED: pack(simulated), SKIPS: pack(quantised(unet, QuantConfig(8, 8, skip_bits=8), inputs))}
            ours: dict[str, Step] = {label: partial(Call(engine), *inputs) for label, engine in engines.items()}
            apart = float((Call(engines[PACKED])(*inputs) - Call(simulated)(*inputs)).pow(2).mean().sqrt())
            others: dict[str, Step] = {SKIPS: ours[SKIPS], **rivals, SIMULATED: partial(Call(simulated), *inputs)}
            ratios = compare(ours[PACKED], others, pairs=5 if quick else 7, warmup=2, name=PACKED)
        rows += judged({"part": "network", "case": name, "threads": threads}, ratios)
        show([row for row in rows if row["case"] == name], f"{name}, threads {threads}; {engines[PACKED].engine()}")
        print(f"packed against simulated: root mean square {apart:.2g}")
    return rows


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
              f"{r['times']:.2f}", verdict(r)) for r in rows]  # fmt: skip
    columns = ("form", "ms", "time / packed", "q25", "q75", "times as fast", "aim")
    table(lines, columns, f"{title} (times as fast: as {rows[0]['over']}, the fastest float32 here)")


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
    small, shape, _ = digits()
    inputs = (torch.zeros(1, *shape), torch.zeros(1))
    for form, quantisation in {"W8": QuantConfig(8, 8), "W4": QuantConfig(4, 8),
                         "W4, 8-bit skip and attention": QuantConfig(4, 8, skip_bits=8)}.items():  # fmt: skip
        sizes = file_sizes(pack(quantised(small, quantisation, inputs)))
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
    torch.manual_seed(0)
    unet, shape, context = latent()
    x, t = torch.randn(2, *shape), torch.full((2,), 501)
    schedule: dict[str, Any] = dict(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear",
                                    clip_sample=False, set_alpha_to_one=False, steps_offset=1)  # fmt: skip
    plain, corrected = PTQDScheduler(**schedule), PTQDScheduler(**schedule)
    for made in (plain, corrected):
        made.set_timesteps(20)
    sums = StatisticsAccumulator()
    for step in plain.timesteps.tolist():
        noise = torch.randn(4, *shape)
        sums.add(step, noise, 1.01 * noise + 0.1 * torch.randn(4, *shape))
    corrected.set_statistics(sums.finish({}))
    noise = torch.randn(2, *shape)
    run = Call(unet)
    with torch.no_grad():
        ratios = compare(
            partial(run, x, t, torch.randn(2, *context)),
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
