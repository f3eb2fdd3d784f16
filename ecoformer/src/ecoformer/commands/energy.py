"""Operations and energy of a network, layer by layer, against full attention and against the unmodified model.

MODEL is one of ours (`pvt_v2_b0_ecoformer`, `alt_gvt_small_ecoformer_nbits8`), a run folder, a folder of
`save_pretrained`, a released file, or a timm name, whose attention is converted. A model of a 45 nm chip, without
memory traffic: not a measurement.
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("model", type=str, help="name, folder or file")
    parser.add_argument("--size", type=int, default=224, help="side of the image in px")
    parser.add_argument("--strict", action="store_true", help="count the squarings of the distances as multiplications")
    parser.add_argument(
        "--precision", choices=["fp32", "fp16", "int32", "int8"], default="fp32", help="of all operations"
    )
    parser.add_argument("--layers", action="store_true", help="print every attention layer")
    parser.add_argument("--output", type=str | None, default=None, help="folder (default: runs/ecoformer/energy/MODEL)")


def run(arguments: Any) -> int:
    import json
    import re
    from pathlib import Path

    from ecoformer.figures.energy import draw_energy
    from ecoformer.models.ledgers import ledgers
    from paperkit.errors import UserError
    from paperkit.files.atomic import write_atomic
    from paperkit.results.report import table

    if arguments.size < 32:
        raise UserError(f"--size {arguments.size}: the smallest image is 32 x 32 px")
    precision = arguments.precision
    books = ledgers(arguments.model, (3, arguments.size, arguments.size), arguments.strict)
    own = next(iter(books.values()))
    rows = []
    for name, book in books.items():
        energy, attention = book.total.energy_pj(precision), book.attention.energy_pj(precision)
        saves = 100 * (1 - own.total.energy_pj(precision) / energy)
        saves_there = 100 * (1 - own.attention.energy_pj(precision) / attention)
        numbers = (book.params / 1e6, book.total.mul / 1e9, book.total.add / 1e9, energy / 1e9, attention / 1e9)
        rows.append((name, *numbers, saves, saves_there))
    columns = ("network", "params M", "mul G", "add G", "B pJ", "attention B pJ", "first saves %", "in attention %")
    table(rows, columns, f"Energy of one {arguments.size} px image at {precision} (a model, not a measurement)")
    if arguments.layers:
        for layer in own.layers:
            energy, softmax = layer.operations.energy_pj(precision) / 1e6, layer.softmax.energy_pj(precision) / 1e6
            where = f"{layer.tokens} tokens, {layer.heads} x {layer.dim // layer.heads}"
            print(f"  {layer.name}: {layer.kind}, {where}: {energy:.2f} M pJ, softmax {softmax:.2f}")
    name = re.sub(r"[^\w.-]+", "_", arguments.model).strip("_")
    folder = Path(arguments.output or Path("runs/ecoformer/energy") / name)
    content = {
        "precision": precision,
        "count": "strict" if arguments.strict else "script",
        "input_size": [3, arguments.size, arguments.size],
        "models": {name: book.as_dict(precision) for name, book in books.items()},
    }
    write_atomic(folder / "energy.json", (json.dumps(content, indent=1) + "\n").encode())
    print(folder / "energy.json")
    print(draw_energy(books, folder / "energy.png", precision))
    return 0
