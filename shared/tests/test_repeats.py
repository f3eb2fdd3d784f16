"""Repeated blocks, looked for as `make lint` and the commit hook run it: arid with the tree's settings, on made trees.

It stands in for pylint's `duplicate-code`, which by measure found none of 150 blocks copied within one file.
"""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ARID = ROOT / ".tools" / "lint" / "bin" / "arid"
BLOCK = [f"x{i} = compute({i})" for i in range(8)]

pytestmark = pytest.mark.skipif(not ARID.exists(), reason="`make lint` installs arid into .tools/lint")


def found(root: Path, **files: list[str]) -> list[list[str]]:
    """One list of `file:first-last` per repeated block."""
    for name, lines in files.items():
        path = root / name / "src" / name / "code.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    folders = [f"{name}/src" for name in files]
    command = [str(ARID), "--config", str(ROOT / "pyproject.toml"), "--json", *folders]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert not result.stderr
    blocks = json.loads(result.stdout)["findings"]
    assert result.returncode == bool(blocks)
    return [
        [f"{Path(at['path']).parts[-4]}:{at['start_line']}-{at['end_line']}" for at in block["locations"]]
        for block in blocks
    ]


def test_eight_equal_lines_are_reported_with_their_places(tmp_path: Path) -> None:
    inside = ["def f():", *(f"    {line}" for line in BLOCK), "    return x0"]
    assert found(tmp_path, a=["import os", "", *BLOCK, "print(x1)"], b=inside) == [["a:3-10", "b:2-9"]]


def test_seven_lines_and_a_difference_are_not(tmp_path: Path) -> None:
    assert found(tmp_path, a=BLOCK[:7], b=[*BLOCK[:7], "y = 1"]) == []
    assert found(tmp_path, a=BLOCK, b=[*BLOCK[:4], "y = 1", *BLOCK[4:]]) == []


def test_blank_comment_and_import_lines_neither_count_nor_part(tmp_path: Path) -> None:
    spread = [*BLOCK[:3], "", "# why", "from a import (", "    b,", "    c,", ")", *BLOCK[3:]]
    assert found(tmp_path, a=BLOCK, b=spread) == [["a:1-8", "b:1-14"]]
    imports = [f"import m{i}" for i in range(9)]
    assert found(tmp_path, a=[*imports, "a = 1"], b=[*imports, "b = 1"]) == []


def test_docstrings_count_and_signatures_do_not(tmp_path: Path) -> None:
    text = ['    """One.', *(f"    Line {i}." for i in range(6)), '    Last."""', "    return 1"]
    assert found(tmp_path, a=["def f():", *text], b=["def g():", *text[:-1], "    return 2"])
    signature = ["def f(", *(f"    a{i}: int = {i}," for i in range(9)), ") -> None:", "    print(a1)"]
    assert found(tmp_path / "s", a=signature, b=[*signature[:-1], "    print(a2)"]) == []


def test_a_long_run_is_one_finding(tmp_path: Path) -> None:
    long = [*BLOCK, *(f"y{i} = 0" for i in range(8))]
    assert found(tmp_path, a=long, b=["z = 0", *long]) == [["a:1-16", "b:2-17"]]


def test_within_one_file(tmp_path: Path) -> None:
    assert found(tmp_path, a=[*BLOCK, "z = 0", *BLOCK]) == [["a:1-8", "a:10-17"]]
    # The same line 12 times is no block that overlaps itself.
    assert found(tmp_path, a=["f()"] * 12) == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two projects with one block in common, and what `make lint` needs around them."""
    (tmp_path / "scripts").mkdir()
    for name in ("lint.sh", "find_uv.sh", "lint-requirements.txt"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "Makefile").write_text("%-setup:\n\t@true\n")
    tools = tmp_path / ".tools" / "lint"
    tools.mkdir(parents=True)
    (tools / "bin").symlink_to(ARID.parent)
    (tools / ".ready").touch()  # nothing is installed from here
    if (ROOT / ".tools" / "uv").exists():
        (tmp_path / ".tools" / "uv").symlink_to(ROOT / ".tools" / "uv")
    for name in ("a", "b"):
        source = tmp_path / name / "src" / name
        source.mkdir(parents=True)
        (source / "code.py").write_text("".join(f"x{i} = {i}\n" for i in range(8)))
        (tmp_path / name / ".venv" / "bin").mkdir(parents=True)
        (tmp_path / name / ".venv" / "bin" / "python").symlink_to(sys.executable)
    return tmp_path


def test_make_lint_fails_on_them(tree: Path) -> None:
    command = ["bash", "scripts/lint.sh", sys.executable, "a", "b"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 1 and "DUP001 8 duplicated lines" in done.stdout
    assert done.stdout.endswith("\nlint: findings in [repeated blocks]\n")
    (tree / "b" / "src" / "b" / "code.py").write_text("y = 0\n")
    assert subprocess.run(command, cwd=tree, capture_output=True, text=True).stdout.endswith("\nlint: all clean\n")


def test_the_commit_hook_fails_on_them(tree: Path) -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    (hook,) = (hook for hook in hooks if hook["id"] == "repeated-blocks")
    assert hook["pass_filenames"] is False
    done = subprocess.run(shlex.split(hook["entry"]), cwd=tree, capture_output=True, text=True)
    assert done.returncode == 1 and "DUP001 8 duplicated lines" in done.stdout
