"""Packed layers and networks against the fastest float32 and int8, as ratios of one run; writes a JSON and a plot."""

from typing import Any, Literal

Part = Literal["linear", "attention", "block", "network", "profile", "size"]


def add_arguments(parser: Any) -> None:
    parts = ["linear", "attention", "block", "network", "profile", "size"]
    parser.add_argument("--parts", type=list[Part], default=parts, help="what to measure")
    parser.add_argument("--threads", type=int | None, default=None, help="threads (default: one, and all)")
    parser.add_argument("--quick", action="store_true", help="a minute: fewer shapes and pairs")
    parser.add_argument("--output", type=str, default="runs/bivit/bench", help="folder for bench.json and bench.png")


def run(arguments: Any) -> int:
    from pathlib import Path

    from bivit.bench import race
    from bivit.deployment import kernels
    from paperkit.errors import UserError
    from paperkit.results.measure import write_bench
    from paperkit.results.report import print_bench

    if arguments.threads is not None and arguments.threads < 1:
        raise UserError(f"threads {arguments.threads} is below 1")
    found, output = {}, Path(arguments.output)
    for part in arguments.parts:
        found[part] = race.PARTS[part](arguments.quick, arguments.threads)
        write_bench(output / "bench.json", "bivit", tier=kernels.tier(), **found)  # a later part may fail
    race.draw(found, output / "bench.png")
    print(f"tier {kernels.tier()} of {', '.join(kernels.available())}")
    print_bench(output, *race.missed(found))
    return 0
