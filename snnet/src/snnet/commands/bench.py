"""Speed and memory on this machine, as ratios of one run: least squares, evaluation, switching, a training step."""

from typing import Any

PARTS = ("least_squares", "evaluation", "switching", "training")


def add_arguments(parser: Any) -> None:
    parser.add_argument("--parts", type=list[str], default=list(PARTS), help=f"which of [{','.join(PARTS)}]")
    parser.add_argument("--images", type=int, default=1000, help="made images for least squares")
    parser.add_argument(
        "--batch_size", type=int, default=1, help="images per timed evaluation pass (training: 8 times as many)"
    )
    parser.add_argument("--pairs", type=int, default=3, help="timed pairs per comparison")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--output", type=str, default="runs/snnet-bench", help="folder for bench.json and bench.png")


def run(arguments: Any) -> int:
    from dataclasses import asdict
    from pathlib import Path

    import torch

    from paperkit.errors import UserError
    from paperkit.results.measure import print_ratios, write_bench
    from paperkit.results.report import table
    from snnet.bench import race as benchmarks
    from snnet.figures.stitches import draw_bench

    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        raise UserError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(arguments.threads)
    sections: dict[str, Any] = {}
    if "switching" in arguments.parts:
        switching = sections["switching"] = benchmarks.switching()
        table(
            [(name, value, value / switching["set_stitch"]) for name, value in switching.items()],
            ("way", "microseconds", "x"),
            "Switching to another operating point",
        )
    if "evaluation" in arguments.parts:
        ratios = benchmarks.evaluation(arguments.batch_size, arguments.pairs)
        print_ratios(ratios, f"All 71 DeiT configurations, batch {arguments.batch_size} (bound: time x 0.796)")
        sections["evaluation"] = [asdict(ratio) for ratio in ratios]
    if "training" in arguments.parts:
        for name, ratios in benchmarks.training_step(8 * arguments.batch_size, arguments.pairs).items():
            print_ratios(ratios, f"Training step, {name}, batch {8 * arguments.batch_size}")
            sections[name] = [asdict(ratio) for ratio in ratios]
    if "least_squares" in arguments.parts:
        found = sections["least_squares"] = benchmarks.least_squares(arguments.images)
        each = found["seconds_per_cut"]
        slowest = each[benchmarks.RELEASED_WAY]
        rows = [
            (name, value, slowest / value, found["measured_cuts"][name], found["residual"].get(name))
            for name, value in each.items()
        ]
        columns = ("way", "seconds a cut", "x faster", "cuts measured", "relative residual")
        table(rows, columns, f"Least squares, DeiT-S to DeiT-B, {found['images']} images of 197 tokens")
    folder = Path(arguments.output)
    write_bench(folder / "bench.json", "snnet", **sections)
    print(f"{folder / 'bench.json'}, {draw_bench(sections, folder / 'bench.png')}")
    return 0
