"""Measure the latency table of a space on this machine: the input of `--latency 20ms` in training and search.

    focusformer latency --space ti --output ti_latency.json
    focusformer train --config focusformer/configs/imagenet/ti.yaml --sampler.cost latency
                      --sampler.latency_table ti_latency.json ...

Extracted networks of random weights are timed. At the end whole networks are, beside what the table says of them.
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("--space", type=str, default="ti", help="ti, s, b, digits, or a YAML file of one")
    parser.add_argument("--batch", type=int, default=1, help="images at once; the table is for that batch")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each network is run")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--output", type=str | None, default=None, help="file (runs/focusformer/latency/SPACE.json)")


def run(arguments: Any) -> int:
    import json
    import random
    import sys
    from pathlib import Path

    import torch
    from rich.progress import track

    from focusformer.deployment.latency_table import latency_of, measure
    from focusformer.method.supernet import Supernet
    from focusformer.models.released import read_space
    from paperkit.command.engines import device
    from paperkit.errors import UserError
    from paperkit.files.atomic import write_atomic
    from paperkit.results.measure import machine
    from paperkit.results.report import table

    for name in ("batch", "threads", "seconds"):
        if getattr(arguments, name) <= 0:
            raise UserError(f"--{name} {getattr(arguments, name)}: above 0")
    space, on = read_space(arguments.space), device(arguments.device)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    supernet, sizes = Supernet(space.sizes).to(on), space.sizes
    image = torch.randn(arguments.batch, sizes.in_chans, sizes.img_size, sizes.img_size, device=on)
    cpu = machine()["cpu"]["model"]
    told = f"{on}, {arguments.threads} threads, float32, batch {arguments.batch}, {cpu}"

    found = measure(
        supernet, space, image, arguments.seconds, told,
        lambda parts: track(parts, "measuring", disable=not sys.stdout.isatty()),
    )  # fmt: skip
    draw = random.Random(0)
    checks = {"smallest": space.smallest(), "middle": space.middle(), "largest": space.largest()}
    checks |= {f"random {i}": space.sample_uniform(draw) for i in (1, 2, 3)}
    rows = []
    for name, architecture in checks.items():
        said, measured = found(architecture), latency_of(supernet, architecture, image, arguments.seconds)
        rows.append((name, said, measured, 100 * (said / measured - 1)))
    table(rows, ("network", "table ms", "measured ms", "table is off by %"), told)
    place = Path(arguments.output or f"runs/focusformer/latency/{Path(arguments.space).stem}.json")
    write_atomic(place, json.dumps(found.to_plain(), indent=1) + "\n")
    print(place)
    return 0
