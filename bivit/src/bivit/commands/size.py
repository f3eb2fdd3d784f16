"""The ledger of a network: bytes and operations as the paper counts them, and true bytes and popcounts.

MODEL is timm's name (`deit_small_patch16_224`), or a run folder, folder or file; the paper's rules are fitted to its
tables (see `method/ledger.py`).
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("model", type=str, help="timm's name, run folder, folder of save_pretrained, or file")
    parser.add_argument("--size", type=int, default=224, help="side of the image in px")
    parser.add_argument("--layers", action="store_true", help="print every layer")
    parser.add_argument("--output", type=str | None, default=None, help="write the ledger as JSON to this file")


def run(arguments: Any) -> int:
    import json
    from functools import partial
    from pathlib import Path

    import timm

    from bivit.deployment.packed_file import description_of, holds_packed, simulated_twin
    from bivit.method.ledger import SIZES, VARIANTS, ledger
    from bivit.models.architectures import build
    from bivit.models.binarize import METHODS
    from paperkit.errors import UserError
    from paperkit.files.atomic import write_atomic
    from paperkit.results.report import table

    if arguments.size < 1:
        raise UserError(f"--size {arguments.size} is below 1")
    if timm.is_model(arguments.model) and not Path(arguments.model).exists():
        network: Any = partial(build, arguments.model, 1000, METHODS["bivit"])
    elif Path(arguments.model).exists():
        packed = holds_packed(Path(arguments.model))
        network = simulated_twin(arguments.model) if packed else description_of(arguments.model)[0]
    else:
        raise UserError(f"{arguments.model} is neither a network of timm's nor a file or folder here")
    try:
        book = ledger(network, (3, arguments.size, arguments.size))
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"--size {arguments.size} is no size of this network's images: {reason}") from error
    words = {"fp": "float32", "stage1": "attention binary", "w1a32": "MLPs W1A32", "w1a1": "all W1A1"}
    full = book.ops("fp")
    rows = [(words[v], f"{book.ops(v) / 1e9:.3f}", f"{full / book.ops(v):.1f}") for v in VARIANTS]
    table(
        rows, ("network", "OPs G", "fewer by"), f"Operations of one image of {arguments.size} px, by the paper's rule"
    )
    sizes = book.size_bytes
    lines = [(name, f"{sizes[name] / 1e6:.3f}", f"{sizes['fp'] / sizes[name]:.1f}") for name in SIZES]
    table(lines, ("count", "MB", "smaller by"), "Bytes: by the paper's rule, and of a packed file with its rest")
    print(f"popcounts of 64-bit words for one image, as it is built: {book.popcounts:,}")
    print("the paper's rules: LayerNorm 5 per element; W1A32 half its products; one bit for all of attn and mlp")
    if arguments.layers:
        columns = ("layer", "kind", "MACs", "words", "bits")
        table([(c.name, c.kind, c.macs, c.words, f"W{c.weight_bits}A{c.input_bits}") for c in book.layers], columns)
    if arguments.output:
        write_atomic(Path(arguments.output), json.dumps(book.as_dict(), indent=1) + "\n")
        print(arguments.output)
    return 0
