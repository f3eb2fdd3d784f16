"""The energy ledger as a picture: what each part of a network costs, beside the same network with other attention."""

from collections.abc import Mapping
from pathlib import Path

from ecoformer.method.energy import OPERATIONS, Ledger
from paperkit.results.report import COLORS, figure, save_figure, style


def draw_energy(books: Mapping[str, Ledger], path: Path, precision: str = "fp32") -> Path:
    """Stacked bars in billion pJ for one image: layers, attention; and the attention layers one by one."""
    with style():
        drawing, (left, right) = figure(1, 2, width=13, height=4)
        names = list(books)
        mul, add = OPERATIONS[precision][0]
        layers = [book.layer_operations * (mul + add) / 1e9 for book in books.values()]
        attention = [book.attention.energy_pj(precision) / 1e9 for book in books.values()]
        left.barh(names, layers, color=COLORS[0], label="Linear, convolution, norm")
        left.barh(names, attention, left=layers, color=COLORS[1], label="attention (products, hash)")
        for place, total in enumerate(map(sum, zip(layers, attention, strict=True))):
            left.annotate(f" {total:.2f}", (total, place), va="center")
        left.invert_yaxis()
        left.margins(x=0.15)
        left.set(title="Energy of one image", xlabel=f"billion pJ at {precision} (a model, not a measurement)")
        left.legend()
        for color, (name, book) in zip(COLORS, books.items(), strict=False):
            values = [layer.operations.energy_pj(precision) / 1e9 for layer in book.layers]
            right.plot(range(1, len(values) + 1), values, "o-", color=color, label=name)
        right.set(title="Its attention, layer by layer", xlabel="attention layer", ylabel="billion pJ", yscale="log")
        right.legend()
        save_figure(drawing, path)
    return path
