"""find_repeats.py [FOLDER]: blocks of code that stand in two places under the `src/` folders of the tree.

A block is a run of eight or more equal lines, compared without indentation; blank lines, comments and imports are left
out first. One line per pair of places, `a.py:10-17 = b.py:30-37`; exit code 1 if there is any.
Runs under the system's Python: it needs nothing but the standard library.
"""

import ast
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LENGTH = 8
SKIPPED = ("runs", "build", "dist", "__pycache__", "node_modules")


class Line(NamedTuple):
    number: int
    text: str


class Repeat(NamedTuple):
    """Two equal runs: files and (first, last) line numbers."""

    a: Path
    a_lines: tuple[int, int]
    b: Path
    b_lines: tuple[int, int]


def sources(root: Path) -> Iterator[Path]:
    """Python files below any folder named `src`; hidden folders (environments), runs and builds are passed over."""
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in SKIPPED and not name.startswith("."))
        if "src" in Path(folder).relative_to(root).parts:
            yield from (Path(folder) / name for name in sorted(files) if name.endswith(".py"))


def code_lines(text: str) -> list[Line]:
    """The lines that count, with their numbers."""
    imports: set[int] = set()
    try:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                imports.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    except SyntaxError:
        pass  # ruff reports it; here its imports count as code
    stripped = (Line(number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [line for line in stripped if line.text and not line.text.startswith("#") and line.number not in imports]


def find_repeats(files: dict[Path, list[Line]], length: int = LENGTH) -> list[Repeat]:
    """All maximal runs of at least `length` equal lines in two places that do not overlap."""
    places: dict[tuple[str, ...], list[tuple[Path, int]]] = defaultdict(list)
    for path, lines in files.items():
        texts = [line.text for line in lines]
        for start in range(len(texts) - length + 1):
            places[tuple(texts[start : start + length])].append((path, start))
    repeats = []
    for found in places.values():
        pairs = ((*one, *other) for n, one in enumerate(found) for other in found[n + 1 :])
        for a, i, b, j in pairs:
            one, other = files[a], files[b]
            if i and j and one[i - 1].text == other[j - 1].text:
                continue  # the run began earlier
            size = length
            while i + size < len(one) and j + size < len(other) and one[i + size].text == other[j + size].text:
                size += 1
            if a == b:
                size = min(size, j - i)
            if size >= length:
                ends = [(lines[k].number, lines[k + size - 1].number) for lines, k in ((one, i), (other, j))]
                repeats.append(Repeat(a, ends[0], b, ends[1]))
    return sorted(repeats)


def main(root: Path = ROOT) -> int:
    files = {path.relative_to(root): code_lines(path.read_text(encoding="utf-8")) for path in sources(root)}
    repeats = find_repeats(files)
    for a, (a_first, a_last), b, (b_first, b_last) in repeats:
        print(f"{a}:{a_first}-{a_last} = {b}:{b_first}-{b_last}")
    return 1 if repeats else 0


if __name__ == "__main__":
    sys.exit(main(*(Path(argument).resolve() for argument in sys.argv[1:2])))
