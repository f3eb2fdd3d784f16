"""Speed and memory on this machine, as ratios of one run: least squares, evaluation, switching, a training step."""

from typing import Any

PARTS = ("least_squares", "evaluation", "switching", "training")


def add_arguments(parser: Any) -> None:
    parser.add_argument("--parts", type=list[str], default=list(PARTS), help=f"which of [{','.join(PARTS)}]")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument(
        "--quick", action="store_true", help="100 images, one pair, smaller networks: to see that it runs"
    )
    parser.add_argument("--images", type=int, default=1000, help="made images for least squares")
    parser.add_argument(
        "--batch_size", type=int, default=1, help="images per timed evaluation pass (training: 8 times as many)"
    )
    parser.add_argument("--pairs", type=int, default=3, help="timed pairs per comparison")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")
    parser.add_argument("--output", type=str | None, default=None, help="folder (default: runs/snnet/bench)")


def run(arguments: Any) -> int:
    from pathlib import Path

    import torch

    from paperkit.errors import UserError
    from paperkit.results.measure import write_bench
    from snnet.bench.race import draw_bench, race

    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        raise UserError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(arguments.threads)
    images, pairs = (100, 1) if arguments.quick else (arguments.images, arguments.pairs)
    sections = race(arguments.parts, images, arguments.batch_size, pairs, arguments.quick)
    folder = Path(arguments.output or Path(arguments.root) / "snnet" / "bench")
    write_bench(folder / "bench.json", "snnet", **sections)
    print(f"{folder / 'bench.json'}, {draw_bench(sections, folder / 'bench.png')}")
    return 0
