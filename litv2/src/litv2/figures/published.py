"""The paper's tables as data, to print beside what is measured: `published("imagenet")` and the like.

Nothing here is recomputed; each file names its source. "From memory" marks the two whose source was not at hand.
"""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from paperkit.errors import UserError

FOLDER = resources.files("litv2") / "published"


@dataclass(frozen=True)
class Table:
    """A published table: where it stands, what to know about it, and its cells."""

    source: str
    note: str
    columns: list[str]
    rows: list[list[Any]]

    def column(self, name: str) -> list[Any]:
        """The cells of one column."""
        return [row[self.columns.index(name)] for row in self.rows]


def names() -> list[str]:
    """The tables there are."""
    return sorted(entry.name.removesuffix(".json") for entry in FOLDER.iterdir() if entry.name.endswith(".json"))


def published(name: str) -> Table:
    """One table.

    Raises:
        UserError: unknown name.
    """
    if name not in names():
        raise UserError(f"no published table '{name}'; there are {', '.join(names())}")
    return Table(**json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
