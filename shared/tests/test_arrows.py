"""The one-way arrows: a paper imports paperkit; paperkit imports no paper; no paper imports another."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORTING_CALLS = {"import_module", "__import__", "importorskip", "find_spec", "run_module", "reload"}


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


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every absolute import, and of every name handed to a call that imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in IMPORTING_CALLS:
                given = [*node.args, *(keyword.value for keyword in node.keywords)]
                for part in (part for value in given for part in ast.walk(value)):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield node.lineno, part.value


def violations(root: Path) -> list[str]:
    """``file:line imports module`` for every arrow that points the wrong way."""
    papers = find_papers(root)
    found = []
    for path in python_files(root):
        place = path.relative_to(root)
        for line, module in imported_modules(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if module.split(".")[0] in papers - {place.parts[0]}:
                found.append(f"{place}:{line} imports {module}")
    return sorted(found)


def test_no_arrow_points_the_wrong_way() -> None:
    assert (ROOT / "shared" / "src" / "paperkit").is_dir() and find_papers(ROOT), "not the repository's root"
    assert violations(ROOT) == []


def test_every_module_of_the_tree_is_looked_at() -> None:
    looked_at = {path.relative_to(ROOT).as_posix() for path in python_files(ROOT)}
    assert "shared/src/paperkit/verification/verify.py" in looked_at and "shared/tests/test_arrows.py" in looked_at
    assert all(any(path.startswith(f"{paper}/src/{paper}/") for path in looked_at) for paper in find_papers(ROOT))


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
