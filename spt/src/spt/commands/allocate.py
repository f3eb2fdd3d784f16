"""Allocate a budget from saved sensitivities, or from a released selection file, and print what is spent.

`spt allocate SENSITIVITIES.safetensors --budget 400000` or `spt allocate param_req_0.4.pth --structured_type lora`
"""

from typing import Any, Literal


def add_arguments(parser: Any) -> None:
    """Options."""
    parser.add_argument("source", type=str, help="RUN/sensitivities.safetensors, or a param_req_*.pth")
    parser.add_argument("--budget", type=int, default=400_000, help="counted parameters")
    parser.add_argument(
        "--structured_type", type=Literal["lora", "adapter", "lora_bias", "none"], default="lora", help="modules"
    )
    parser.add_argument("--rank", type=int, default=8, help="of every module")
    parser.add_argument("--alpha", type=float, default=10.0, help="a module needs K / alpha marks")
    parser.add_argument("--beta", type=float, default=5.0, help="a vector needs 1 / beta of its entries")
    parser.add_argument("--search", type=Literal["exact", "official"], default="exact", help="how the budget is met")
    parser.add_argument("--fixed", type=int, default=768, help="parameters trained anyway (class token)")
    parser.add_argument("--save", type=str | None, default=None, help="write the selection as param_req_*.pth here")


def run(arguments: Any) -> None:
    """Prints counted and really trained parameters, and a block by operation table."""
    import io

    import torch

    from paperkit.errors import UserError
    from paperkit.files.atomic import write_atomic
    from paperkit.results.report import table
    from spt.method.allocation import Rule
    from spt.method.budget import exact_selection, official_selections
    from spt.method.candidates import OPERATIONS
    from spt.method.sensitivity import load_sensitivities
    from spt.models.selection_file import flags, read_selection, to_content

    rule = Rule(arguments.structured_type, arguments.rank, arguments.alpha, arguments.beta, fixed=arguments.fixed)
    if arguments.source.endswith(".pth"):
        from spt.models.backbones import vit_shapes

        selection = read_selection(arguments.source, rule, vit_shapes())
    else:
        values = load_sensitivities(arguments.source).values
        if arguments.search == "exact":
            selection = exact_selection(values, rule, arguments.budget)
        else:
            found = official_selections(values, rule, budgets=(arguments.budget / 1e6,))
            if not found:
                raise UserError(
                    f"the released sweep has no total near {arguments.budget}; --search exact has one below it"
                )
            selection = next(iter(found.values()))[1]
    print(selection.describe())
    untrained = sum(index.numel() for name, index in selection.entries.items() if "norm" in name)
    print(
        f"really trained: {selection.counted - untrained:,} "
        f"({untrained:,} marked LayerNorm entries are counted, not trained)"
    )
    rows = []
    for block, row in enumerate(flags(selection, rows=1)):
        cells = [str(block + 1)]
        for operation, flag in zip(OPERATIONS, row, strict=True):
            part = "mlp" if operation.startswith("fc") else "attn"
            entries = selection.entries.get(f"blocks.{block}.{part}.{operation}.weight")
            cells.append("module" if flag else f"{entries.numel():,}" if entries is not None else "-")
        rows.append(cells)
    table(rows, ("block", *OPERATIONS), "modules, or the number of single entries")
    if arguments.save:
        buffer = io.BytesIO()
        torch.save(to_content(selection), buffer)
        write_atomic(arguments.save, buffer.getvalue())
        print(f"written: {arguments.save}")
