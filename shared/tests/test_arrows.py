"""The one-way arrows, between projects and between the rooms of a package.

A paper imports paperkit; paperkit imports no paper; no paper imports another. Inside a package a room (a folder)
imports itself and the rooms before it, and no modules import each other in a circle. Imports in functions and for type
checking count like any other.
"""

import ast
import graphlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORTING_CALLS = {"import_module", "__import__", "importorskip", "find_spec", "run_module", "reload"}
PAPER_ROOMS = (
    "method",
    "models",
    "figures",
    "training",
    "experiment",
    "deployment",
    "verification",
    "bench",
    "commands",
)
KIT_ROOMS = (
    "errors",
    "doors",
    "files",
    "results",
    "data",
    "training",
    "verification",
    "command",
    "native",
    "export",
    "testing",
)
OUTSIDE = {"__init__", "cli"}  # name modules of every room; no room imports them


def find_papers(root: Path) -> set[str]:
    """Folders with a pyproject.toml and a package of their own name."""
    return {
        path.parent.name for path in root.glob("*/pyproject.toml") if (path.parent / "src" / path.parent.name).is_dir()
    }


def python_files(root: Path) -> Iterator[Path]:
    """Every Python file of the tree: sources, tests, configs, scripts; not environments, runs and builds."""
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".") and name not in ("runs", "build", "dist")]
        yield from (Path(folder) / name for name in sorted(files) if name.endswith(".py"))


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """(line, dotted name, names taken from it) of every import, and of every name handed to a call that imports.

    A relative import's name begins with its dots.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            taken = tuple(alias.name for alias in node.names)
            yield node.lineno, "." * node.level + (node.module or ""), taken
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in IMPORTING_CALLS:
                given = [*node.args, *(keyword.value for keyword in node.keywords)]
                for part in (part for value in given for part in ast.walk(value)):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield node.lineno, part.value, ()


def violations(root: Path) -> list[str]:
    """`file:line imports module` for every arrow between projects that points the wrong way."""
    papers = find_papers(root)
    found = []
    for path in python_files(root):
        place = path.relative_to(root)
        for line, module, _ in imported_modules(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if module.split(".")[0] in papers - {place.parts[0]}:
                found.append(f"{place}:{line} imports {module}")
    return sorted(found)


def arrows(package: Path) -> dict[str, dict[str, int]]:
    """For each module of a package the modules of the package that it imports, and in which line first.

    Names are dotted and without the package's own: `method.hilo`, `cli`; the package itself is `__init__`.
    """

    def own_name(path: Path) -> str:
        return ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")

    modules = {own_name(path): path for path in sorted(package.rglob("*.py"))}
    found: dict[str, dict[str, int]] = {}
    for name, path in modules.items():
        targets = found.setdefault(name, {})
        inside = [package.name, *path.relative_to(package).parent.parts]
        for line, module, taken in imported_modules(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            dots = len(module) - len(module.lstrip("."))
            whole = [*inside[: len(inside) - dots + 1], *module[dots:].split(".")] if dots else module.split(".")
            base = ".".join(part for part in whole if part).partition(".")
            if base[0] != package.name:
                continue
            for target in (f"{base[2]}.{one}".strip(".") for one in taken or ("",)):
                target = target if target in modules else base[2] or "__init__"
                if target != name:
                    targets.setdefault(target, line)
    return found


def room_violations(package: Path, rooms: tuple[str, ...]) -> list[str]:
    """What in a package is against the order of its rooms, and every circle of modules."""
    found = []
    for path in sorted(package.iterdir()):
        if path.is_dir() and path.name not in ("__pycache__", "published"):
            if path.name not in rooms:
                found.append(f"{path.name}/ is no room; there are: {', '.join(rooms)}")
            elif not (path / "__init__.py").exists():
                found.append(f"{path.name}/ has no __init__.py")
            else:
                text = (path / "__init__.py").read_text(encoding="utf-8")
                if not ast.get_docstring(ast.parse(text)) or len(text.splitlines()) != 1:
                    found.append(f"{path.name}/__init__.py is not one line of docstring")
        elif path.suffix == ".py" and path.stem not in OUTSIDE | set(rooms):
            found.append(f"{path.name} stands in no room")
    found += [f"{path.relative_to(package)} is code among data" for path in (package / "published").rglob("*.py")]
    modules = arrows(package)
    for name, targets in modules.items():
        room = name.split(".")[0]
        for target, line in targets.items():
            towards = target.split(".")[0]
            if room in rooms and (
                towards in OUTSIDE or (towards in rooms and rooms.index(towards) > rooms.index(room))
            ):
                found.append(f"{name}:{line} imports {target}")
    try:
        graphlib.TopologicalSorter(
            {name: targets for name, targets in modules.items() if name not in OUTSIDE}
        ).prepare()
    except graphlib.CycleError as error:
        found.append("circle: " + " -> ".join(reversed(error.args[1])))
    return found


def test_no_arrow_points_the_wrong_way() -> None:
    assert (ROOT / "shared" / "src" / "paperkit").is_dir() and find_papers(ROOT), "not the repository's root"
    assert violations(ROOT) == []


def test_every_module_of_the_tree_is_looked_at() -> None:
    looked_at = {path.relative_to(ROOT).as_posix() for path in python_files(ROOT)}
    assert "shared/src/paperkit/verification/verify.py" in looked_at and "shared/tests/test_arrows.py" in looked_at
    assert all(any(path.startswith(f"{paper}/src/{paper}/") for path in looked_at) for paper in find_papers(ROOT))


def test_paperkit_keeps_the_order_of_its_rooms() -> None:
    assert room_violations(ROOT / "shared" / "src" / "paperkit", KIT_ROOMS) == []


@pytest.mark.parametrize("paper", sorted(find_papers(ROOT)))
def test_a_paper_keeps_the_order_of_the_rooms(paper: str) -> None:
    assert room_violations(ROOT / paper / "src" / paper, PAPER_ROOMS) == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two papers over paperkit, all arrows right; `notes` has no package of its name, so it is no paper."""
    for folder, package in (("shared", "paperkit"), ("alpha", "alpha"), ("beta", "beta"), ("notes", "other")):
        source = tmp_path / folder / "src" / package
        (source / "deep").mkdir(parents=True)
        (tmp_path / folder / "pyproject.toml").write_text("")
        (source / "deep" / "code.py").write_text("import notes\nfrom . import beta\n")
    (tmp_path / "alpha" / "src" / "alpha" / "code.py").write_text(
        "import paperkit.results.flops, alpha.deep\nprint('beta.x')\n"
    )
    (tmp_path / "alpha" / ".venv").mkdir()
    (tmp_path / "alpha" / ".venv" / "code.py").write_text("import beta")
    return tmp_path


def test_a_right_tree_is_clean(tree: Path) -> None:
    assert find_papers(tree) == {"alpha", "beta"} and violations(tree) == []


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("shared/src/paperkit/a.py", "import os, alpha", "1 imports alpha"),
        ("shared/src/paperkit/deep/a.py", "def f():\n    from beta.x import y", "2 imports beta.x"),
        ("shared/tests/test_a.py", "import beta as b", "1 imports beta"),
        ("alpha/src/alpha/a.py", "try:\n    import beta.x\nexcept ImportError:\n    beta = None", "2 imports beta.x"),
        ("alpha/tests/test_a.py", "from beta import x", "1 imports beta"),
        ("beta/configs/a.py", "import importlib\nimportlib.import_module('alpha.x')", "2 imports alpha.x"),
        ("beta/src/beta/a.py", "from importlib import import_module\nimport_module(name='alpha')", "2 imports alpha"),
        ("beta/src/beta/a.py", "__import__('alpha' + suffix)", "1 imports alpha"),
        ("beta/tests/a.py", "pytest.importorskip('alpha')", "1 imports alpha"),
        ("scripts/a.py", "import alpha", "1 imports alpha"),
    ],
)  # fmt: skip
def test_a_wrong_arrow_is_found(file: str, text: str, says: str, tree: Path) -> None:
    path = tree / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert violations(tree) == [f"{file}:{says}"]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A paper in order: arrows to the rooms before, a late one to a neighbour, the verbs' modules as strings."""
    files = {
        "__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gamma.models.net import Net\n",
        "cli.py": "import gamma.commands.bench\nVERBS = {'bench': 'gamma.commands.bench'}\n",
        "method/idea.py": "import torch\nfrom paperkit.errors import UserError\n",
        "method/parts/__init__.py": "from gamma.method.parts.one import f\n",  # a package inside a room
        "method/parts/one.py": "f = 1\n",
        "models/net.py": "from gamma.method import idea, parts\nimport gamma.method.idea, gamma.method.parts\n",
        "figures/curve.py": "def draw():\n    from gamma.models.net import Net\nWHERE = 'gamma.bench.race'\n",
        "training/images.py": "import gamma.figures.curve as curve\n",
        "bench/race.py": "import training, gammaray.method\n",
        "commands/bench.py": "from gamma.bench.race import race\nfrom ..models import net\n",
    }
    for name in ("method", "models", "figures", "training", "bench", "commands"):
        files[f"{name}/__init__.py"] = f'"""The room {name}."""\n'
    for name, text in files.items():
        path = tmp_path / "gamma" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "gamma" / "published").mkdir()
    (tmp_path / "gamma" / "published" / "table.json").write_text("{}")
    (tmp_path / "gamma" / "py.typed").touch()
    return tmp_path / "gamma"


def test_rooms_in_order_are_clean(package: Path) -> None:
    assert room_violations(package, PAPER_ROOMS) == []
    assert arrows(package)["models.net"] == {"method.idea": 1, "method.parts": 1}
    assert arrows(package)["commands.bench"] == {"bench.race": 1, "models.net": 2}


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("method/a.py", "x = 1\nfrom gamma.models.net import Net", ["method.a:2 imports models.net"]),
        ("method/a.py", "from gamma.models import net", ["method.a:1 imports models.net"]),
        ("method/a.py", "import gamma.models.net as n", ["method.a:1 imports models.net"]),
        ("method/a.py", "import gamma.models", ["method.a:1 imports models"]),
        ("method/a.py", "from ..models.net import Net", ["method.a:1 imports models.net"]),
        ("method/a.py", "def f():\n    import gamma.commands.bench", ["method.a:2 imports commands.bench"]),
        ("method/parts/a.py", "from ...bench import race", ["method.parts.a:1 imports bench.race"]),
        (
            "models/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gamma.training.images import train",
            ["models.a:3 imports training.images"],
        ),
        ("bench/a.py", "import_module('gamma.commands.bench')", ["bench.a:1 imports commands.bench"]),
        ("figures/a.py", "from gamma import Net", ["figures.a:1 imports __init__"]),
        ("figures/a.py", "from gamma.cli import VERBS", ["figures.a:1 imports cli"]),
        ("utils/__init__.py", '"""Anything."""', ["utils/ is no room; there are: " + ", ".join(PAPER_ROOMS)]),
        ("verification/kinds.py", "", ["verification/ has no __init__.py"]),
        ("models/__init__.py", '"""Models."""\nx = 1', ["models/__init__.py is not one line of docstring"]),
        ("models/__init__.py", "import torch", ["models/__init__.py is not one line of docstring"]),
        ("models/__init__.py", "", ["models/__init__.py is not one line of docstring"]),
        ("loose.py", "", ["loose.py stands in no room"]),
        ("published/read.py", "", ["published/read.py is code among data"]),
        ("method/parts/one.py", "import gamma.method.idea", []),
    ],
)  # fmt: skip
def test_disorder_is_found(file: str, text: str, says: list[str], package: Path) -> None:
    (package / file).parent.mkdir(exist_ok=True)
    (package / file).write_text(text)
    assert room_violations(package, PAPER_ROOMS) == says


@pytest.mark.parametrize(
    "back", ["import gamma.method.a", "def f():\n    from gamma.method import a", "from .a import x"]
)
def test_a_circle_in_a_room_is_found(back: str, package: Path) -> None:
    (package / "method" / "a.py").write_text("from gamma.method.b import y")
    (package / "method" / "b.py").write_text("from gamma.method.c import z")
    (package / "method" / "c.py").write_text(back)
    (circle,) = room_violations(package, PAPER_ROOMS)
    assert {f"method.{name}" for name in "abc"} == set(circle.removeprefix("circle: ").split(" -> "))
    (package / "method" / "c.py").write_text("")
    assert room_violations(package, PAPER_ROOMS) == []
