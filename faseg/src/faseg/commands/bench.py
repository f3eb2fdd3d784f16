"""Speed and memory against the baselines, as ratios of one run; writes a JSON and a plot (10 minutes at most)."""

from typing import Any, Literal

Part = Literal["decoder", "model", "omega"]


def add_arguments(parser: Any) -> None:
    parts = ["decoder", "model", "omega"]
    parser.add_argument("--parts", type=list[Part], default=parts, help="what to measure")
    parser.add_argument("--threads", type=int | None, default=None, help="threads (default: 1)")
    parser.add_argument("--quick", action="store_true", help="a minute: fewer sizes and pairs")
    parser.add_argument("--run", type=str, default="", help="embedded run whose omegas are told (newest finished)")
    parser.add_argument("--output", type=str, default="runs/faseg/bench", help="folder for bench.json and bench.png")


def run(arguments: Any) -> int:
    from importlib.util import find_spec
    from pathlib import Path

    from faseg.bench import race
    from paperkit.errors import UserError
    from paperkit.results.measure import write_bench
    from paperkit.results.report import print_bench

    if arguments.threads is not None and arguments.threads < 1:
        raise UserError(f"threads {arguments.threads} is below 1")
    found, output = {}, Path(arguments.output)
    for part in arguments.parts:
        if part == "omega":
            try:
                found[part] = race.omega(arguments.run)
            except UserError as error:
                if arguments.run:
                    raise
                print(f"omega left out: {error}")
                continue
        elif part == "model" and find_spec("transformers") is None:
            print("model left out: transformers, the rival, is not installed (pip install 'faseg[bench]')")
            continue
        else:
            found[part] = race.PARTS[part](arguments.quick, arguments.threads)
        write_bench(output / "bench.json", "faseg", **found)  # after each part: a later one may fail
    if not found:
        raise UserError("nothing was measured")
    race.draw(found, output / "bench.png")
    print_bench(output, *race.missed(found))
    return 0
