"""CONTRIBUTING.md's "Add a paper", followed to the letter: the paper that its blocks make passes lint and its tests."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's own settings and tests of it, paperkit's sources, and the paper."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "scripts", root / "scripts")
    (root / "shared" / "tests").mkdir(parents=True)
    (root / "shared" / "src").symlink_to(ROOT / "shared" / "src")
    (root / "shared" / "pyproject.toml").symlink_to(ROOT / "shared" / "pyproject.toml")
    shutil.copy(ROOT / "shared" / "tests" / "test_arrows.py", root / "shared" / "tests")
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = BLOCK.findall(text[text.index("## Add a paper") : text.index("## Conventions")])
    for _, place, content in blocks:
        if place:
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).write_text(content)
    for language, place, content in blocks:
        if language == "sh" and not place:
            subprocess.run(["sh", "-ec", content], cwd=root, check=True)
    return root


def run(tree: Path, *command: str, cwd: str = ".") -> str:
    """What a command prints; it must end well."""
    path = os.pathsep.join(str(tree / folder) for folder in ("lowrank/src", "shared/src"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=tree / cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    return done.stdout


def test_make_finds_it(tree: Path) -> None:
    assert "\nLow rank: linear layers as a product of two thin matrices\n  make lowrank-train " in run(
        tree, "make", "help"
    )


def test_it_passes_lint(tree: Path) -> None:
    tools = ROOT / ".tools" / "lint" / "bin"
    if not tools.exists():
        pytest.skip("`make lint` installs the tools into .tools/lint")
    run(tree, str(tools / "ruff"), "check", "--no-cache", "lowrank")
    run(tree, str(tools / "ruff"), "format", "--no-cache", "--check", "lowrank")
    run(tree, str(tools / "arid"), "--config", "pyproject.toml", "lowrank/src")
    mypy = [str(tools / "mypy"), "--config-file", "pyproject.toml", "--cache-dir", str(ROOT / ".mypy_cache" / "shared")]
    run(tree, *mypy, "--python-executable", sys.executable, "lowrank/src")


def test_its_rooms_are_in_order(tree: Path) -> None:
    spec = importlib.util.spec_from_file_location("arrows", tree / "shared" / "tests" / "test_arrows.py")
    assert spec and spec.loader
    arrows = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(arrows)
    assert arrows.find_papers(tree) == {"lowrank"} and arrows.violations(tree) == []
    assert arrows.room_violations(tree / "lowrank" / "src" / "lowrank", arrows.PAPER_ROOMS) == []


def test_its_tests_pass(tree: Path) -> None:
    """Among them those that every paper has of `train`, `eval` and `--resume` through the engines."""
    done = run(tree, sys.executable, "-m", "pytest", "-n", "0", "-rA", "tests", cwd="lowrank")
    assert "SKIPPED" not in done
    for test in ("test_low_rank_linear", "test_golden", "[train_writes_the_run]", "[eval_uses_the_runs_own_engine]"):
        assert re.search(rf"^PASSED .*{re.escape(test)}", done, re.MULTILINE), done
    assert not (tree / "lowrank" / "runs").exists()
