"""Many deltas on one backbone: reads lines `DELTA IMAGE` and answers each with JSON, switching exactly between tasks.

`printf 'flowers a.jpg\\npets b.jpg\\n' | spt serve --deltas.flowers RUN1 --deltas.pets RUN2 --file BACKBONE`
"""

from typing import Any

from paperkit.errors import UserError


def add_arguments(parser: Any) -> None:
    """Options."""
    from spt.commands.task_options import add_backbone_arguments

    parser.add_argument("--deltas", type=dict[str, str], required=True, help="name: run or delta folder of each")
    parser.add_argument("--top", type=int, default=1, help="classes in an answer")
    add_backbone_arguments(parser)


def run(arguments: Any) -> None:
    """Answers until the input ends."""
    import json
    import sys
    import time

    from spt.deployment.hot_swap import HotSwap
    from spt.deployment.task_model import bare_backbone, delta_folder, image_size, read_image, top_classes
    from spt.models.delta import load_delta

    folders = {name: delta_folder(folder, arguments.root) for name, folder in arguments.deltas.items()}
    deltas = {name: load_delta(folder) for name, folder in folders.items()}
    if not deltas:
        raise UserError("serve needs at least one delta: --deltas.NAME DIR")
    name, delta = next(iter(deltas.items()))
    given = arguments.file, arguments.arch, arguments.trust_pickle, arguments.part
    model = bare_backbone(delta, folders[name], *given)
    swap = HotSwap(model)
    for name, delta in deltas.items():
        swap.add(name, delta)
    for line in sys.stdin:
        if not line.strip():
            continue
        name, _, path = line.strip().partition(" ")
        try:
            start = time.perf_counter()
            swap.switch(name)
            switched = 1e3 * (time.perf_counter() - start)
            top = top_classes(model, read_image(path.strip(), image_size(model)), arguments.top)
            answer: dict[str, Any] = {"delta": name, "image": path.strip(), "top": top, "switch_ms": round(switched, 3)}
        except UserError as error:  # one bad request does not end the service
            answer = {"delta": name, "image": path.strip(), "error": str(error)}
        print(json.dumps(answer), flush=True)
