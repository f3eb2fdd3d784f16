"""The Makefile on a made tree: it finds a paper by its folder, and cleaning leaves nothing of it."""

import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two papers and shared, each with all that set-up, runs and tools leave."""
    shutil.copy(MAKEFILE, tmp_path)
    for folder, package in (("alpha", "alpha"), ("beta", "beta"), ("shared", "paperkit")):
        source = tmp_path / folder / "src" / package
        for left in (source / "__pycache__", tmp_path / folder / "src" / f"{package}.egg-info",
                     tmp_path / folder / ".venv" / "bin", tmp_path / folder / ".pytest_cache",
                     tmp_path / folder / "tests" / "__pycache__", tmp_path / ".mypy_cache" / folder,
                     *(tmp_path / "runs" / folder / name for name in ("2026-11-28", "bench", "eval"))):  # fmt: skip
            left.mkdir(parents=True)
            (left / "file").touch()
        (source / "__init__.py").touch()
        (tmp_path / folder / "pyproject.toml").write_text(f'description = "{folder} and no other"\n')
    return tmp_path


def files(tree: Path) -> set[str]:
    return {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}


def make(tree: Path, target: str) -> str:
    return subprocess.run(["make", target], cwd=tree, capture_output=True, text=True, check=True).stdout


def test_help_lists_every_target_of_a_paper(tree: Path) -> None:
    listed = make(tree, "help")
    assert "\nalpha and no other\n  make alpha-train " in listed and "paperkit and no other" not in listed
    for target in ("train", "eval", "test", "bench", "setup", "clean"):
        assert f"\n  make beta-{target} " in listed


@pytest.mark.parametrize(("folder", "package"), [("alpha", "alpha"), ("shared", "paperkit")])
def test_clean_leaves_nothing_of_a_project_and_all_of_the_others(folder: str, package: str, tree: Path) -> None:
    before = files(tree)
    make(tree, f"{folder}-clean")
    mine = {path for path in before if folder in path.split("/")}
    assert files(tree) == (before - mine) | {f"{folder}/pyproject.toml", f"{folder}/src/{package}/__init__.py"}


def test_clean_leaves_the_sources(tree: Path) -> None:
    (tree / "report.html").touch()
    make(tree, "clean")
    sources = {"alpha": "alpha", "beta": "beta", "shared": "paperkit"}.items()
    kept = {
        f"{folder}/{name}" for folder, package in sources for name in ("pyproject.toml", f"src/{package}/__init__.py")
    }
    assert files(tree) == {"Makefile", *kept}
