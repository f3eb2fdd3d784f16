"""The clock: packed linears, attention, a block and whole networks against the fastest float32 and int8 there is.

Every figure is a ratio of one run. "Times" of a packed form are over the FASTEST float32 form of this machine, which
is named; packing of activations is always part of the time.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bivit.bench import forms
from bivit.bench.forms import FLOAT32, INT8, Step
from bivit.deployment import kernels
from bivit.deployment.packed_blocks import packed_attention
from bivit.deployment.packed_file import write_packed
from bivit.deployment.packed_layers import PackedAttention
from bivit.deployment.packed_linear import PackedLinear
from bivit.deployment.packed_model import pack
from bivit.figures.latency import draw_latency
from bivit.method.binary_linear import BinaryLinear
from bivit.models.binarize import METHODS, BinaryConfig, binarize
from paperkit.results.environment import cpu
from paperkit.results.measure import compare
from paperkit.results.report import save_figure, table

Rows = list[dict[str, Any]]
LINEARS = {
    "DeiT-S fc1": (197, 384, 1536),
    "DeiT-S fc2": (197, 1536, 384),
    "DeiT-S qkv": (197, 384, 1152),
    "DeiT-S proj": (197, 384, 384),
    "DeiT-S fc1, 8 images": (1576, 384, 1536),
    "Swin-T fc1, stage 1": (3136, 96, 384),
    "Swin-T fc1, stage 2": (784, 192, 768),
    "Swin-T fc2, stage 3": (196, 1536, 384),
}
"""Tokens, inputs, outputs."""
ATTENTIONS = {"DeiT-S": (1, 6, 197, 64), "Swin-T, stage 1": (64, 3, 49, 32), "NesT-T, stage 1": (16, 3, 196, 32)}
"""Windows, heads, tokens, width of a head."""
AIMS = {"vpopcnt": 8.0, "avx512bw": 3.0}
"""Times of attention, block and network over the fastest float32, by tier."""


def linear_aim(name: str, tier: str) -> float | None:
    """What was aimed at: times of a packed linear over the fastest float32."""
    if tier == "avx512bw":
        return 4.0 if name.startswith("DeiT-S") and "8 images" not in name else 2.5
    return {"vpopcnt": 8.0, "avx2": 2.0}.get(tier)


def thread_counts(threads: int | None) -> list[int]:
    """What is measured: the number that was asked for, else one and all."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [threads] if threads else sorted({1, cores})


def raced(
    case: dict[str, Any], step: Step, rivals: dict[str, Step], aims: Callable[[str], float | None], pairs: int,
    others: Mapping[str, Step] | None = None,
) -> Rows:  # fmt: skip
    """Times of a packed step at every tier against rivals. `others`: further packed forms, without an aim."""
    tiers = [tier for tier in kernels.available() if tier not in ("portable", "torch")] or list(kernels.available()[:1])
    packed = {f"packed, {tier}": forms.at_tier(step, tier) for tier in tiers}
    first = next(iter(packed))
    variants = {**rivals, **(others or {}), **{name: run for name, run in packed.items() if name != first}}
    with torch.inference_mode():
        ratios = compare(packed[first], variants, pairs=pairs, warmup=2, min_seconds=0.01, name=first)
    floats = [r for r in ratios if r.name in FLOAT32]
    fastest = min(floats, key=lambda r: r.median)
    rows = []
    for r in ratios:
        name = first if r.name.endswith(" again") else r.name
        times = fastest.median / (1.0 if name == first else r.median)
        aim = aims(name.removeprefix("packed, ")) if name in packed else None
        met = None if aim is None else times >= aim
        if name in INT8:  # our time has to be the smaller one
            times, aim, met = fastest.median / r.median, None, r.median >= 1
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
    aim = "slower than packed" if row["aim"] is None else f"{row['aim']:g}"
    return f"{aim}: {'met' if row['met'] else 'MISSED'}"


def linear(quick: bool, threads: int | None = None) -> Rows:
    """Packed linears from float to float."""
    rows: Rows = []
    for count in thread_counts(threads):
        torch.set_num_threads(count)
        for name, (tokens, inputs, outputs) in list(LINEARS.items())[: 2 if quick else None]:
            torch.manual_seed(0)
            x, plain = torch.randn(tokens, inputs), nn.Linear(inputs, outputs).eval()
            binary = BinaryLinear(inputs, outputs).eval()
            binary.start_scale()
            packed = PackedLinear.of(binary)
            rivals = forms.float_steps(plain.requires_grad_(False), x)
            rivals |= forms.exported_steps(plain, x, count, False, print)
            half = plain.weight.bfloat16(), plain.bias.bfloat16()
            rivals |= {forms.BF16: partial(F.linear, x.bfloat16(), *half)} | forms.dynamic_int8(plain, x)
            case = {"part": "linear", "threads": count, "case": name}
            simulated = {"simulated": partial(binary, x)}
            rows += raced(case, partial(packed, x), rivals, partial(linear_aim, name), 5 if quick else 11, simulated)
            show([r for r in rows if r["case"] == name and r["threads"] == count],
                 f"{name}: {tokens} x {inputs} -> {outputs}, threads {count}")  # fmt: skip
    return rows


def attention(quick: bool, threads: int | None = None) -> Rows:
    """Products of an attention: float q, k, v to float sums."""
    rows: Rows = []
    for count in thread_counts(threads):
        torch.set_num_threads(count)
        for name, shape in list(ATTENTIONS.items())[: 1 if quick else None]:
            q, k, v = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
            model = _Sdpa().eval()
            stacked = torch.stack((q, k, v))
            rivals: dict[str, Step] = {forms.TORCH: partial(F.scaled_dot_product_attention, q, k, v)}
            rivals |= {name: step for name, step in forms.float_steps(model, stacked).items() if name != forms.TORCH}
            rivals |= forms.exported_steps(model, stacked, count, False, print)
            case = {"part": "attention", "threads": count, "case": name}
            simulated: dict[str, Step] = {
                "simulated": partial(forms.at_tier(partial(packed_attention, q, k, v), "torch"))
            }
            rows += raced(case, partial(packed_attention, q, k, v), rivals, AIMS.get, 5 if quick else 11, simulated)
            show([r for r in rows if r["case"] == name and r["threads"] == count],
                 f"Attention of {name}, windows x heads x tokens x width {shape}, threads {count}")  # fmt: skip
    return rows


class _Sdpa(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = x.unbind(0)
        return F.scaled_dot_product_attention(q, k, v)


def networks_of(arch: str, config: BinaryConfig) -> tuple[nn.Module, nn.Module]:
    """A float network and a packed one of the same shape, random numbers; biases are not zero."""
    torch.manual_seed(0)
    plain = timm.create_model(arch, drop_path_rate=0.0).eval().requires_grad_(False)
    for name, value in plain.named_parameters():
        if name.endswith(("bias", "bias_table")):
            value.normal_(std=0.1)
    binary = timm.create_model(arch, drop_path_rate=0.0).eval()
    binary.load_state_dict(plain.state_dict())
    binarize(binary, config)
    return plain, pack(binary)


W1A1 = BinaryConfig(mlp="w1a1")


def block(quick: bool, threads: int | None = None) -> Rows:
    """A whole block of DeiT-S, and of Swin-T's first stage."""
    rows: Rows = []
    plain, packed = networks_of("deit_small_patch16_224", W1A1)
    _, half = networks_of("deit_small_patch16_224", METHODS["bivit"])
    x = torch.randn(1, 197, 384, generator=torch.Generator().manual_seed(0))
    for count in thread_counts(threads):
        torch.set_num_threads(count)
        one: Any = plain.blocks
        rivals = forms.float_steps(one[0], x) | forms.exported_steps(one[0], x, count, True, print)
        ours: Any = packed.blocks
        floats: Any = half.blocks
        case = {"part": "block", "threads": count, "case": "DeiT-S block"}
        here = raced(case, partial(ours[0], x), rivals, AIMS.get, 5 if quick else 11,
                     {"packed attention, W1A32 MLP": partial(floats[0], x)})  # fmt: skip
        show(here, f"DeiT-S block W1A1, batch 1, threads {count}")
        rows += here
    return rows


def network(quick: bool, threads: int | None = None) -> Rows:
    """Whole networks from image to logits, batch 1."""
    rows: Rows = []
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for name, arch in {"DeiT-S": "deit_small_patch16_224", "Swin-T": "swin_tiny_patch4_window7_224"}.items():
        if quick and name != "DeiT-S":
            continue
        plain, packed = networks_of(arch, W1A1)
        _, half = networks_of(arch, METHODS["bivit"])
        for count in thread_counts(threads):
            torch.set_num_threads(count)
            rivals = forms.float_steps(plain, x) | forms.exported_steps(plain, x, count, True, print)
            case = {"part": "network", "threads": count, "case": name}
            aims: Callable[[str], float | None] = AIMS.get if name == "DeiT-S" else lambda tier: None
            here = raced(
                case, partial(packed, x), rivals, aims, 3 if quick else 7, {"packed, W1A32 MLP": partial(half, x)}
            )
            show(here, f"{name} W1A1 from image to logits, batch 1, threads {count}")
            rows += here
    return rows


def profile(quick: bool, threads: int | None = None) -> Rows:
    """Where a packed block of DeiT-S spends its time: each part by itself, and the whole."""
    rows: Rows = []
    _, packed = networks_of("deit_small_patch16_224", W1A1)
    blocks: Any = packed.blocks
    embed: Any = packed.patch_embed
    one, x = blocks[0], torch.randn(1, 197, 384, generator=torch.Generator().manual_seed(0))
    hidden, (q, k, v) = torch.randn(1, 197, 1536), torch.randn(3, 1, 6, 197, 64)
    assert isinstance(one.attn, PackedAttention)
    parts: dict[str, Step] = {
        "patch embedding": partial(embed, torch.randn(1, 3, 224, 224)),
        "qkv": partial(one.attn.qkv, x),
        "attention products": partial(packed_attention, q, k, v),
        "proj": partial(one.attn.proj, x),
        "fc1": partial(one.mlp.fc1, x),
        "fc2": partial(one.mlp.fc2, hidden),
    }
    for count in thread_counts(threads):
        torch.set_num_threads(count)
        for tier in [tier for tier in kernels.available() if tier in AIMS]:
            steps = {name: forms.at_tier(step, tier) for name, step in parts.items()}
            with torch.inference_mode():
                ratios = compare(forms.at_tier(partial(one, x), tier), steps, pairs=3 if quick else 9, name="block")
            here: Rows = []
            for r in ratios:
                name = "whole block" if r.name == "block again" else r.name
                here.append({"part": "profile", "threads": count, "case": tier, "form": name, "ms": 1e3 * r.seconds,
                             "share": r.median, "q25": r.q25, "q75": r.q75, "met": None, "aim": None})  # fmt: skip
            rows += here
            lines = [(r["form"], f"{r['ms']:.4g}", f"{r['share']:.2f}") for r in here]
            table(
                lines,
                ("part, from and to floats", "ms", "of the block"),
                f"Packed DeiT-S block, {tier}, threads {count}",
            )
    return rows


def size(quick: bool, threads: int | None = None) -> Rows:
    """Bytes of DeiT-S on disk."""
    plain, packed = networks_of("deit_small_patch16_224", W1A1)
    whole = sum(4 * p.numel() for p in plain.parameters())
    rows: Rows = []
    with tempfile.TemporaryDirectory() as folder:
        for rest, aim in (("fp16", 20.0), ("fp32", 14.0)):
            file = Path(folder) / f"{rest}.safetensors"
            write_packed(file, packed, "deit_small_patch16_224", W1A1, None, rest)  # type: ignore[arg-type]
            times = whole / file.stat().st_size
            rows.append({"part": "size", "threads": 0, "case": "DeiT-S file", "form": f"rest {rest}",
                         "bytes": file.stat().st_size, "times": times, "aim": aim, "met": times >= aim})  # fmt: skip
    lines = [(r["form"], f"{r['bytes']:,}", f"{r['times']:.2f}", verdict(r)) for r in rows]
    table(lines, ("file", "bytes", "smaller than float32 by", "aim"), f"DeiT-S on disk; float32 {whole:,} bytes")
    return rows


PARTS: dict[str, Callable[[bool, int | None], Rows]] = {
    "linear": linear, "attention": attention, "block": block, "network": network, "profile": profile, "size": size,
}  # fmt: skip


def missed(found: dict[str, Rows]) -> tuple[int, list[str]]:
    """How many aims there are in all parts, and the missed ones in words."""
    judged = [row for rows in found.values() for row in rows if row["met"] is not None]
    words = []
    for row in judged:
        if not row["met"]:
            aim = f"{row['times']:.2f} of {row['aim']:g}" if row["aim"] else "is faster than packed"
            words.append(f"{row['part']}: {row['case']}, {row['form']}, threads {row['threads']}: {aim}")
    return len(judged), words


def draw(found: dict[str, Rows], path: Path) -> None:
    """Bars of each case, and where a packed block spends its time."""
    measured = [row for part in ("linear", "attention", "block", "network") for row in found.get(part, [])]
    fewest = min((row["threads"] for row in measured), default=1)
    cases: dict[str, dict[str, float]] = {}
    for row in measured:
        if row["threads"] == fewest and row["form"] in (
            *FLOAT32,
            *INT8,
            *(f"packed, {t}" for t in kernels.available()),
        ):
            cases.setdefault(f"{row['case']} {'' if row['part'] == 'block' else row['part']}", {})[row["form"]] = row[
                "ms"
            ]
    parts: dict[str, dict[str, float]] = {}
    for row in found.get("profile", []):
        if row["threads"] == fewest and row["form"] not in ("whole block", "patch embedding"):
            parts.setdefault(row["case"], {})[row["form"]] = row["ms"]
    processor = cpu()
    title = f"{processor['model']}, {' '.join(processor['flags'])}; tier {kernels.tier()}, threads {fewest}"
    save_figure(draw_latency(cases, parts, title), path)
