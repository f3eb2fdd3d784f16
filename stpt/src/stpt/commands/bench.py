"""Speed and memory against the baselines, as ratios of one run; writes a JSON and a plot (10 minutes at most).

pooling        boundary pooling: sparse table, loop over windows, masked maxima
nms            soft-NMS: one padded problem, class after class, candidate after candidate
map            mAP at THUMOS14's size, vectorised and in loops
clip           backbone of a 256x96x96 clip: LLGG, LLLL, GGGG, I3D on RGB and flow; time and peak memory
overlap        a long video with and without shared overlaps, and their drift
checkpointing  training memory and time with activations kept and computed again
"""

from typing import Any, Literal

Part = Literal["pooling", "nms", "map", "clip", "overlap", "checkpointing"]


def add_arguments(parser: Any) -> None:
    parts = ["pooling", "nms", "map", "clip", "overlap", "checkpointing"]
    parser.add_argument("--parts", type=list[Part], default=parts, help="what to measure")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--quick", action="store_true", help="a minute: small clips, fewer sizes and pairs, no aims")
    parser.add_argument("--output", type=str, default="runs/stpt/bench", help="folder for bench.json and bench.png")


def run(arguments: Any) -> int:
    from pathlib import Path

    import torch

    from paperkit.command.engines import refuse_below_one
    from paperkit.errors import UserError
    from paperkit.results.measure import write_bench
    from paperkit.results.report import print_bench
    from stpt.bench import race

    refuse_below_one(arguments, ["threads"])
    if not arguments.parts:
        raise UserError(f"no parts: give some of {', '.join(race.PARTS)}")
    found, output, before = {}, Path(arguments.output), torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        for part in arguments.parts:
            found[part] = race.PARTS[part](arguments.quick, arguments.threads)
            write_bench(output / "bench.json", "stpt", **found)  # after each part: a later one may fail
    finally:
        torch.set_num_threads(before)
    race.draw(found, output / "bench.png")
    print_bench(output, *race.missed(found))
    return 0
