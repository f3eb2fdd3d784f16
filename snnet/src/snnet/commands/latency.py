"""Measure every configuration on this machine, and keep the table beside the network for `select --latency`."""

from typing import Any


def add_arguments(parser: Any) -> None:
    from snnet.commands import network_options

    network_options.add_arguments(parser)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each configuration is run")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")


def run(arguments: Any) -> int:
    import json
    import sys

    import torch
    from rich.progress import track

    from paperkit.command.engines import device
    from paperkit.files.atomic import write_atomic
    from paperkit.results.measure import machine
    from paperkit.results.report import table
    from snnet.deployment.latency import measure_latencies
    from snnet.deployment.source import open_source
    from snnet.method.budget import LATENCIES

    torch.set_num_threads(arguments.threads)
    source = open_source(arguments)
    chosen = device(arguments.device)
    network = source.network.to(chosen)
    ids = track(range(network.num_configurations), "measuring", disable=not sys.stdout.isatty())
    found = measure_latencies(network, source.input_size, ids, arguments.seconds)
    rows = [(p.config_id, p.name, p.flops / 1e9, found[p.config_id], p.acc1) for p in source.points()]
    table(
        rows, ("id", "configuration", "GMAC", "latency [ms]", "top-1 [%]"), f"batch of 1, {arguments.threads} threads"
    )
    if source.folder is not None:
        content = {
            "milliseconds": found,
            "threads": arguments.threads,
            "device": str(chosen),
            "machine": machine(),
        }
        write_atomic(source.folder / LATENCIES, json.dumps(content, indent=2) + "\n")
        print(f"kept in {source.folder / LATENCIES}")
    return 0
