"""Speed and memory against the baselines, as ratios of one run; writes a JSON and a plot (10 minutes at most)."""

from typing import Any, Literal

Part = Literal["attention", "fit", "memory", "networks"]


def add_arguments(parser: Any) -> None:
    parts = ["attention", "fit", "memory", "networks"]
    parser.add_argument("--parts", type=list[Part], default=parts, help="what to measure")
    parser.add_argument("--threads", type=int | None, default=None, help="threads (default: 1, attention on 2 too)")
    parser.add_argument("--quick", action="store_true", help="a minute: fewer sizes, pairs and forms")
    parser.add_argument(
        "--output", type=str, default="runs/ecoformer/bench", help="folder for bench.json and bench.png"
    )


def run(arguments: Any) -> int:
    from pathlib import Path

    from ecoformer.bench import race
    from ecoformer.method import fused_attention_native as native
    from paperkit.errors import UserError
    from paperkit.results.measure import write_bench
    from paperkit.results.report import print_bench

    if arguments.threads is not None and arguments.threads < 1:
        raise UserError(f"threads {arguments.threads} is below 1")
    found, output = {}, Path(arguments.output)
    for part in arguments.parts:
        found[part] = race.PARTS[part](arguments.quick, arguments.threads)
        write_bench(output / "bench.json", "ecoformer", **found)  # after each part: a later one may fail
    race.draw(found, output / "bench.png")
    kernel = "by its kernel in C++" if native.kernel() else "by torch.compile: there is no C++ kernel here"
    print_bench(output, *race.missed(found), before=f"EcoFormer {kernel}; ")
    return 0
