"""The architecture of a trained run for a budget, with the weights that it inherits.

    focusformer search --ckpt RUN --flops 1.4G                    # one call of the sampler
    focusformer search --ckpt RUN --params 6M --method best       # the best of its samples on held-out images
    focusformer search --ckpt RUN --latency 20ms --latency-table FILE --method evolution

Without --ckpt the newest finished run is taken. The architecture, its costs, its accuracy, and what the search cost in
evaluations and draws are printed and kept in RUN/search/.
"""

from typing import Any, Literal


def add_arguments(parser: Any) -> None:
    for kind, text in {
        "flops": "official FLOPs, as in the papers' tables: 1.4G",
        "params": "parameters: 6M",
        "macs": "multiply-accumulates: 1.3G",
        "latency": "measured: 20ms",
    }.items():
        parser.add_argument(f"--{kind}", type=str | None, default=None, help=f"budget of {text}")
    parser.add_argument("--latency-table", type=str | None, default=None, help="file of `focusformer latency`")
    parser.add_argument("--ckpt", type=str | None, default=None, help="run, or its folder best (default: newest run)")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")
    how = "greedy: one sampler call; best: of its samples; random; evolution (AutoFormer's)"
    parser.add_argument("--method", type=Literal["greedy", "best", "random", "evolution"], default="greedy", help=how)
    parser.add_argument("--samples", type=int, default=50, help="samples of method best")
    parser.add_argument("--evaluations", type=int, default=200, help="evaluations of random and evolution")
    least = "smallest share of the budget that may be used (default: the sampler's, else 0.9)"
    parser.add_argument("--least", type=float | None, default=None, help=least)
    parser.add_argument("--seed", type=int | None, default=None, help="of the draws; of a digits run: which seed's")
    parser.add_argument("--data-root", type=str | None, default=None, help="folder of the images (default: the run's)")
    parser.add_argument("--images", type=int | None, default=None, help="held-out images of an evaluation, at most")
    parser.add_argument("--test", action="store_true", help="measure the chosen one on the test images as well")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--output", type=str | None, default=None, help="folder (default: RUN/search)")


def run(arguments: Any) -> int:
    import json
    import time
    from pathlib import Path

    from focusformer.deployment.searching import budget_of, open_run, search
    from focusformer.method.cost import COUNTERS, LatencyTable, cost, relative_macs
    from paperkit.command.engines import device
    from paperkit.errors import UserError
    from paperkit.files.atomic import write_atomic
    from paperkit.files.runs import RunFolder, resolve_run
    from paperkit.results.report import table

    kinds = ("flops", "params", "macs", "latency")
    asked = [kind for kind in kinds if getattr(arguments, kind) is not None]
    if len(asked) != 1:
        raise UserError(f"name one budget, as in --flops 1.4G; given: {', '.join(asked) or 'none'}")
    for name in ("evaluations", "images"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name} {value}: 1 at least")
    (kind,) = asked
    text = getattr(arguments, kind)
    budget = budget_of(text, kind)
    ckpt = arguments.ckpt
    inside = None if ckpt is None or not Path(ckpt).is_dir() else Path(ckpt).absolute()
    if inside is not None and not (inside / "started").is_file() and (inside.parent / "started").is_file():
        folder = RunFolder(inside.parent)
    else:
        found_run = resolve_run(ckpt, arguments.root, "focusformer")[0]
        if found_run is None:
            raise UserError(f"{ckpt} lies in no run: a search needs the run's held-out images and its sampler")
        folder = found_run
    if not folder.finished:
        raise UserError(f"{folder.path} is not finished: go on with `focusformer train --resume {folder.path}`")
    table_of = None if arguments.latency_table is None else LatencyTable.read(arguments.latency_table)
    source = open_run(folder, ckpt, arguments.data_root, arguments.images, arguments.seed)
    source.supernet.to(device(arguments.device))
    reach = source.reachable(kind, table_of, arguments.least)
    start = time.perf_counter()
    found = search(
        source, kind, budget, reach, arguments.method, samples=arguments.samples, evaluations=arguments.evaluations,
        seed=arguments.seed or 0,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    chosen, sizes = found.architecture, source.space.sizes
    accuracy, loss = source.seen[chosen]
    content: dict[str, Any] = {
        "run": str(folder.path), "constraint": kind, "budget": budget, "least": reach.least,
        "method": arguments.method, "seed": arguments.seed or 0, "architecture": str(chosen),
        "official": chosen.to_official(), **{name: cost(sizes, chosen, name) for name in COUNTERS},
        "relative_macs": relative_macs(sizes, chosen), "held_out_accuracy": accuracy, "held_out_loss": loss,
        "evaluations": found.evaluations, "draws": found.draws, "seconds": seconds, "curve": list(found.curve),
    }  # fmt: skip
    rows: list[tuple[str, float, str]] = [
        ("parameters", content["params"] / 1e6, "M"),
        ("official FLOPs", content["official_flops"] / 1e9, "G"),
        ("MACs", content["macs"] / 1e9, "G"),
        ("of relative position", content["relative_macs"] / 1e9, "G"),
    ]
    if kind == "latency":
        content["latency"] = reach.cost(chosen)
        rows.append(("latency by the table", content["latency"], "ms"))
    rows += [("held-out accuracy", accuracy, "%"), ("held-out loss", loss, "")]
    if arguments.test:
        content["test_accuracy"], content["test_loss"] = source.measured(chosen, source.test)
        rows += [("test accuracy", content["test_accuracy"], "%"), ("test loss", content["test_loss"], "")]
    rows += [("evaluations", found.evaluations, ""), ("draws", found.draws, ""), ("time of the search", seconds, "s")]
    table(rows, ("of the architecture", "value", "unit"), f"{chosen} for {kind} {text} by {arguments.method}")
    target = Path(arguments.output or folder.path / "search") / f"{kind}-{text}-{arguments.method}.json"
    write_atomic(target, json.dumps(content, indent=2) + "\n")
    print(target)
    return 0
