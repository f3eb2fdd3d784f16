"""Packed integers against the fastest float32 and int8, and the method's own costs, as ratios of one run."""

from typing import Any, Literal

Part = Literal["network", "size", "search", "statistics", "scheduler"]


def add_arguments(parser: Any) -> None:
    parts = ["network", "size", "search", "statistics", "scheduler"]
    parser.add_argument("--parts", type=list[Part], default=parts, help="what to measure")
    parser.add_argument("--threads", type=int | None, default=None, help="threads (default: all cores)")
    parser.add_argument("--quick", action="store_true", help="a minute: fewer networks and pairs")
    parser.add_argument("--output", type=str, default="runs/ptq4dm/bench", help="folder for bench.json and bench.png")


def run(arguments: Any) -> int:
    from pathlib import Path

    import torch

    from paperkit.errors import UserError
    from paperkit.results.environment import cpu
    from paperkit.results.measure import write_bench
    from paperkit.results.report import print_bench, save_figure
    from ptq4dm.bench import race
    from ptq4dm.deployment import kernels
    from ptq4dm.figures.speed import draw_speed

    if arguments.threads is not None and arguments.threads < 1:
        raise UserError(f"threads {arguments.threads} is below 1")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    found, output = {}, Path(arguments.output)
    for part in arguments.parts:
        found[part] = race.PARTS[part](arguments.quick, torch.get_num_threads())
        write_bench(output / "bench.json", "ptq4dm", tier=kernels.tier(), **found)  # a later part may fail
    processor = cpu()
    machine = f"{processor['model']}, {' '.join(processor['flags'])}; tier {kernels.tier()}"
    save_figure(draw_speed(found.get("network", []), machine), output / "bench.png")
    print_bench(output, *race.missed(found), before=f"tier {kernels.tier()} of {', '.join(kernels.available())}; ")
    return 0
