"""Choose the configuration of best known accuracy within budgets, and print its id."""

from typing import Any


def add_arguments(parser: Any) -> None:
    from snnet.commands import network_options

    network_options.add_arguments(parser)
    parser.add_argument("--flops", type=float | None, default=None, help="multiply-adds per image at most, such as 4e9")
    parser.add_argument("--params", type=float | None, default=None, help="parameters at most, such as 25e6")
    parser.add_argument("--latency", type=float | None, default=None, help="milliseconds per image at most")


def run(arguments: Any) -> int:
    from snnet.deployment.source import open_source
    from snnet.method.budget import select

    points = open_source(arguments).points()
    chosen = points[select(points, arguments.flops, arguments.params, arguments.latency)]
    known = "" if chosen.acc1 is None else f", top-1 {chosen.acc1:.2f} %"
    timed = "" if chosen.latency is None else f", {chosen.latency:.1f} ms"
    print(
        f"{chosen.config_id}  {chosen.name}: {chosen.flops / 1e9:.3g} GMAC, {chosen.params / 1e6:.3g} M{known}{timed}"
    )
    return 0
