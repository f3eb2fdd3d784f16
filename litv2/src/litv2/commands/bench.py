"""Speed and memory against the baselines, as ratios of one run; writes a JSON and a plot (10 minutes at most)."""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("--out", type=str, default="runs/litv2/bench", help="folder for bench.json and bench.png")
    parser.add_argument("--quick", action="store_true", help="a minute: fewer sizes, pairs and rivals")
    parser.add_argument(
        "--protocol", action="store_true", help="only the paper's throughput protocol (batch 64, 224 px)"
    )
    parser.add_argument("--device", type=str, default="cuda", help="device of --protocol")


def run(arguments: Any) -> int:
    import os
    from pathlib import Path

    from litv2 import bench
    from litv2.bench_figure import draw
    from paperkit.measure import write_bench
    from paperkit.report import table

    if arguments.protocol:
        print(f"LITv2-S: {bench.throughput(device=arguments.device):.1f} images/s (batch 64, 224 px, 50 + 30 forwards)")
        return 0
    quick, out = arguments.quick, Path(arguments.out)
    layers = bench.single_layers(quick)
    table(
        [(f"{c['side']}x{c['side']}", c["name"], c["over_hilo"], *c["spread"], 1e3 * c["seconds"], c["macs"] / 1e6,
          c["kept"] / 2**20) for c in layers],
        ("tokens", "layer", "time / HiLo .9", "q25", "q75", "ms", "M multiply-adds", "MiB kept"),
        "One layer, D 384, 12 heads, batch 1, one thread",
    )  # fmt: skip
    forms = bench.forms(quick)
    table(
        [(r["size"], r["form"], r["over_litv2"], r["q25"], r["q75"], r["ms"], r["differs"]) for r in forms],
        ("px", "form", "time / fused", "q25", "q75", "ms", "outputs differ by"),
        "LITv2-S, fused against its plain form, batch 1, one thread, default float32",
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    names = ("ConvNeXt-T",) if quick else tuple(bench.RIVALS)
    settings = [(224, 1, "highest", 3 if quick else 9)]
    if not quick:
        settings += [(224, 1, "medium", 7), (224, cores, "highest", 7), (224, cores, "medium", 7)]
        settings += [(512, 1, "highest", 3), (512, cores, "highest", 3)]
    rivals = [row for setting in settings for row in bench.rivals(*setting, names)]
    table(
        [
            (r["size"], r["threads"], r["precision"], r["network"], r["over_litv2"], r["q25"], r["q75"], r["ms"])
            for r in rivals
        ],
        ("px", "threads", "matmul", "network", "time / LITv2-S", "q25", "q75", "ms"),
        "LITv2-S (fused) against timm's networks, batch 1: above 1, LITv2-S is faster",
    )
    sizes = (224,) if quick else (224, 512)
    memory = [
        {"size": size, "network": name, "MiB": bench.peak(name, size)}
        for size in sizes
        for name in ("fused", "plain", *names)
    ]
    table(
        [(m["size"], m["network"], m["MiB"]) for m in memory], ("px", "network", "MiB above the weights"),
        "Peak memory of one forward pass, a process each",
    )  # fmt: skip
    write_bench(out / "bench.json", "litv2", layers=layers, forms=forms, rivals=rivals, memory=memory)
    draw(layers, forms, rivals, out / "bench.png")
    print(f"{out / 'bench.json'}, {out / 'bench.png'}")
    return 0
