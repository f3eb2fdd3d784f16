"""Speed and memory against the baselines, as ratios of one run; writes a JSON and a plot (10 minutes at most)."""

from typing import Any, Literal

Part = Literal["layers", "forms", "rivals", "memory"]


def add_arguments(parser: Any) -> None:
    parts = ["layers", "forms", "rivals", "memory"]
    parser.add_argument("--parts", type=list[Part], default=parts, help="what to measure")
    parser.add_argument(
        "--threads", type=int | None, default=None, help="threads (default: 1, rivals on all cores too)"
    )
    parser.add_argument("--quick", action="store_true", help="two minutes: fewer sizes, pairs and rivals")
    parser.add_argument("--output", type=str, default="runs/litv2/bench", help="folder for bench.json and bench.png")
    parser.add_argument("--protocol", action="store_true", help="only the paper's throughput protocol (batch 64)")
    parser.add_argument("--device", type=str, default="cuda", help="device of --protocol")


def run(arguments: Any) -> int:
    from pathlib import Path

    from litv2.bench import race
    from paperkit.results.measure import write_bench

    if arguments.protocol:
        print(f"LITv2-S: {race.throughput(device=arguments.device):.1f} images/s (batch 64, 224 px, 50 + 30 forwards)")
        return 0
    found = {part: race.PARTS[part](arguments.quick, arguments.threads) for part in arguments.parts}
    output = Path(arguments.output)
    write_bench(output / "bench.json", "litv2", **found)
    race.draw(found, output / "bench.png")
    print(f"{output / 'bench.json'}, {output / 'bench.png'}")
    return 0
