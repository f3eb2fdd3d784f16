"""Selection files `param_req_{budget}.pth` of the authors: read safely, and written in the same form."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy._core import multiarray
from torch import Tensor

from paperkit.errors import UserError
from paperkit.files.weights import read_checkpoint
from spt.method.allocation import Rule, Selection
from spt.method.candidates import OPERATIONS

KEYS = (
    "unstructured_name_shapes",
    "unstructured_name_shapes_int",
    "params",
    "unstructured_params",
    "structured_params",
    "unstructured_indexes",
    "tuned_matrices",
    "tuned_vectors",
)
# numpy scalars, under the names of numpy 1 and numpy 2 files.
ALLOWED: tuple[Any, ...] = (
    multiarray.scalar,
    (multiarray.scalar, "numpy.core.multiarray.scalar"),
    numpy.dtype,
    type(numpy.dtype("int64")),
)


def operation_name(block: int, operation: str, leaf: str = "weight") -> str:
    """`(3, "fc1")` -> `blocks.3.mlp.fc1.weight`."""
    return f"blocks.{block}.{'mlp' if operation.startswith('fc') else 'attn'}.{operation}.{leaf}"


def read_selection(path: str | Path, rule: Rule, shapes: Mapping[str, torch.Size]) -> Selection:
    """Reads a released selection for the model whose candidates have these shapes.

    Args:
        rule: type, rank and fixed parameters of the run; the file does not say.

    Raises:
        UserError: for a file that is not a selection, is of another architecture, or whose counts do not fit the rule.
    """
    content = read_checkpoint(path, allow=ALLOWED)
    return parse_selection(content, rule, shapes, str(path))


def check_content(content: object, source: str) -> dict:
    """The dict of a selection file with every key and type as released.

    Raises:
        UserError: naming what is missing or of the wrong form.
    """
    if not isinstance(content, dict) or (missing := [key for key in KEYS if key not in content]):
        what = f"lacks {', '.join(missing)}" if isinstance(content, dict) else f"holds a {type(content).__name__}"
        raise UserError(f"{source} is no selection file: it {what}")
    index, names, rows = (
        content[key] for key in ("unstructured_indexes", "unstructured_name_shapes", "tuned_matrices")
    )
    if not isinstance(index, Tensor) or index.ndim != 1 or index.dtype != torch.int64:
        raise UserError(f"{source}: unstructured_indexes is not a row of int64")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{source}: unstructured_name_shapes is not a dict of names")
    if any(len(row) != len(OPERATIONS) or not set(row) <= {0, 1} for row in rows):
        raise UserError(f"{source}: tuned_matrices is not a list of six flags a block")
    sizes = {name: int(torch.Size(shape).numel()) for name, shape in names.items()}
    if {name: int(size) for name, size in content["unstructured_name_shapes_int"].items()} != sizes:
        raise UserError(f"{source}: unstructured_name_shapes_int does not agree with unstructured_name_shapes")
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < sum(sizes.values()):
        raise UserError(f"{source}: unstructured_indexes points outside the listed parameters")
    if int(content["unstructured_params"]) != index.numel():
        raise UserError(f"{source}: {int(content['unstructured_params'])} entries counted, {index.numel()} listed")
    return content


def split_indexes(content: dict) -> dict[str, Tensor]:
    """Flat indices per name; the file numbers the concatenation of only the names it lists (pitfall 7)."""
    index = content["unstructured_indexes"].sort().values
    entries, start = {}, 0
    for name, shape in content["unstructured_name_shapes"].items():
        size = int(torch.Size(shape).numel())
        entries[name] = index[(index >= start) & (index < start + size)] - start
        start += size
    return entries


def parse_selection(content: object, rule: Rule, shapes: Mapping[str, torch.Size], source: str) -> Selection:
    """The content of a selection file as a `Selection`; see `read_selection`."""
    content = check_content(content, source)
    modules = [
        operation_name(block, operation)
        for block, row in enumerate(content["tuned_matrices"])
        for operation, flag in zip(OPERATIONS, row, strict=True)
        if flag
    ]
    vectors = list(content["tuned_vectors"])
    for name in [*modules, *vectors, *content["unstructured_name_shapes"]]:
        if name not in shapes:
            raise UserError(f"{source} is of another architecture: it names {name}, which the model lacks")
    for name, shape in content["unstructured_name_shapes"].items():
        if torch.Size(shape) != shapes[name]:
            raise UserError(f"{source} is of another architecture: {name} is {list(shape)}, {list(shapes[name])} here")
    selection = Selection(modules, vectors, split_indexes(content), dict(shapes), rule)
    if selection.structured_count != int(content["structured_params"]):
        raise UserError(
            f"{source} counts {int(content['structured_params'])} structured parameters, but {rule.structured_type} "
            f"of rank {rule.rank} would be {selection.structured_count}: give the type and rank it was made with"
        )
    return selection


def to_content(selection: Selection, unit: float = 1e6) -> dict:
    """The dict that the authors' code would save; twelve rows of flags at least, as released."""
    sizes = {name: selection.shapes[name] for name in selection.entries}
    starts, start = {}, 0
    for name, shape in sizes.items():
        starts[name] = start
        start += shape.numel()
    pieces = [index + starts[name] for name, index in selection.entries.items()]
    index = torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int64)
    return {
        "unstructured_name_shapes": dict(sizes),
        "unstructured_name_shapes_int": {name: numpy.int64(shape.numel()) for name, shape in sizes.items()},
        "params": torch.tensor(selection.counted / unit),
        "unstructured_params": torch.tensor(float(selection.sparse_count)),
        "structured_params": selection.structured_count,
        "unstructured_indexes": index,
        "tuned_matrices": flags(selection),
        "tuned_vectors": list(selection.vectors),
    }


def flags(selection: Selection, rows: int = 12) -> list[list[int]]:
    """Six flags a block (q, k, v, proj, fc1, fc2), `rows` rows at least."""
    places = [re.match(r"blocks\.(\d+)\.(?:attn|mlp)\.(\w+)\.weight$", name) for name in selection.modules]
    if None in places:
        raise UserError(
            f"a selection file numbers the blocks of a ViT; {selection.modules[places.index(None)]} is in none"
        )
    chosen = {(int(place[1]), place[2]) for place in places if place}
    blocks = [int(found[1]) for name in selection.shapes if (found := re.match(r"blocks\.(\d+)\.", name))]
    return [[int((block, op) in chosen) for op in OPERATIONS] for block in range(max(rows, *(b + 1 for b in blocks)))]
