"""List every configuration: id, anchors and cut, multiply-adds, parameters, accuracy where it is known, Pareto mark."""

from typing import Any


def add_arguments(parser: Any) -> None:
    from snnet.commands import network_options

    network_options.add_arguments(parser)
    parser.add_argument("--pareto", action="store_true", help="only those that no cheaper configuration matches")


def run(arguments: Any) -> int:
    from paperkit.results.report import table
    from snnet.deployment.source import open_source
    from snnet.method.budget import pareto_front

    source = open_source(arguments)
    points = source.points()
    front = set(pareto_front((p.config_id, p.flops, p.acc1) for p in points if p.acc1 is not None))
    known = any(p.latency is not None for p in points)
    rows = [
        (p.config_id, p.name, p.flops / 1e9, p.params / 1e6, p.acc1, "*" if p.config_id in front else "")
        + ((p.latency,) if known else ())
        for p in points
        if not arguments.pareto or p.config_id in front
    ]
    columns = ["id", "configuration", "GMAC", "params [M]", "top-1 [%]", "Pareto", *(["latency [ms]"] if known else [])]
    table(
        rows,
        columns,
        f"{len(rows)} configurations" + (f" (accuracy: {source.accuracy_of})" if source.accuracies else ""),
    )
    return 0
