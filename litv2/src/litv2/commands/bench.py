"""Speed and memory against the baselines, as ratios of one run; writes a JSON and a plot (10 minutes at most)."""

from typing import Any, Literal

PARTS = ("layers", "forms", "rivals", "memory")
Part = Literal["layers", "forms", "rivals", "memory"]


def add_arguments(parser: Any) -> None:
    parser.add_argument("--out", type=str, default="runs/litv2/bench", help="folder for bench.json and bench.png")
    parser.add_argument("--parts", type=list[Part], default=list(PARTS), help="what to measure")
    parser.add_argument("--quick", action="store_true", help="two minutes: fewer sizes, pairs and rivals")
    parser.add_argument("--protocol", action="store_true", help="only the paper's throughput protocol (batch 64)")
    parser.add_argument("--device", type=str, default="cuda", help="device of --protocol")


def run(arguments: Any) -> int:
    from pathlib import Path

    from litv2.bench import race as bench
    from litv2.bench.bench_figure import draw
    from paperkit.results.measure import write_bench

    if arguments.protocol:
        print(f"LITv2-S: {bench.throughput(device=arguments.device):.1f} images/s (batch 64, 224 px, 50 + 30 forwards)")
        return 0
    measures = {"layers": _layers, "forms": _forms, "rivals": _rivals, "memory": _memory}
    found = {part: measures[part](bench, arguments.quick) for part in arguments.parts}
    out = Path(arguments.out)
    write_bench(out / "bench.json", "litv2", **found)
    draw(found.get("layers", []), found.get("forms", []), found.get("rivals", []), out / "bench.png")
    print(f"{out / 'bench.json'}, {out / 'bench.png'}")
    return 0


def _layers(bench: Any, quick: bool) -> list[dict[str, Any]]:
    from paperkit.results.report import table

    rows = bench.single_layers(quick)
    title = "One layer, D 384, 12 heads, batch 1, one thread, default float32"
    columns = ("tokens", "layer", "time / HiLo .9", "q25", "q75", "ms", "M multiply-adds", "MiB kept", "MiB at peak")
    lines = [
        (f"{r['side']}x{r['side']}", r["name"], r["over_hilo"], *r["spread"], 1e3 * r["seconds"], r["macs"] / 1e6,
         r["kept"] / 2**20, "" if r["peak"] is None else r["peak"])
        for r in rows
    ]  # fmt: skip
    table(lines, columns, title)
    return rows


def _forms(bench: Any, quick: bool) -> list[dict[str, Any]]:
    from paperkit.results.report import table

    rows = bench.forms(quick)
    keys = ("size", "form", "over_litv2", "q25", "q75", "ms", "differs")
    columns = ("px", "form", "time / fused", "q25", "q75", "ms", "outputs differ by")
    title = "LITv2-S, fused against its plain form, batch 1, one thread, default float32"
    table([[r[key] for key in keys] for r in rows], columns, title)
    return rows


def _rivals(bench: Any, quick: bool) -> list[dict[str, Any]]:
    import os

    from paperkit.results.report import table

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    settings = [(224, 1, "highest", 3 if quick else 9)]
    if not quick:
        settings += [(224, 1, "medium", 5), (224, cores, "highest", 5), (224, cores, "medium", 5)]
        settings += [(512, 1, "highest", 3), (512, cores, "highest", 3)]
    rows = [row for setting in settings for row in bench.rivals(*setting, names_of(bench, quick))]
    keys = ("size", "threads", "precision", "network", "over_litv2", "q25", "q75", "ms")
    columns = ("px", "threads", "matmul", "network", "time / LITv2-S", "q25", "q75", "ms")
    title = "LITv2-S (fused) against timm's networks, batch 1: above 1, LITv2-S is faster"
    table([[r[key] for key in keys] for r in rows], columns, title)
    return rows


def _memory(bench: Any, quick: bool) -> list[dict[str, Any]]:
    from litv2.bench.memory import network_peak
    from paperkit.results.report import table

    names = ("fused", "plain", *names_of(bench, quick))
    rows = [
        {"size": size, "network": name, "MiB": network_peak(name, size)}
        for size in ((224,) if quick else (224, 512))
        for name in names
    ]
    title = "Peak memory of one forward pass, a process each"
    table([list(r.values()) for r in rows], ("px", "network", "MiB above the weights"), title)
    return rows


def names_of(bench: Any, quick: bool) -> tuple[str, ...]:
    """The rivals that are raced."""
    return ("ConvNeXt-T",) if quick else tuple(bench.RIVALS)
