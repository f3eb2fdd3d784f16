"""The check for repeated blocks, on made trees, through the command line."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "find_repeats.py"
BLOCK = [f"x{i} = compute({i})" for i in range(8)]


def found(root: Path, **files: list[str]) -> tuple[int, list[str]]:
    for name, lines in files.items():
        path = root / name / "src" / name / "code.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    result = subprocess.run([sys.executable, str(SCRIPT), str(root)], capture_output=True, text=True)
    assert not result.stderr
    return result.returncode, result.stdout.splitlines()


def test_eight_equal_lines_are_reported_with_their_places(tmp_path: Path) -> None:
    inside = ["def f():", *(f"    {line}" for line in BLOCK), "    return x0"]
    code, lines = found(tmp_path, a=["import os", "", *BLOCK, "print(x1)"], b=inside)
    assert code == 1 and lines == ["a/src/a/code.py:3-10 = b/src/b/code.py:2-9"]


def test_seven_lines_and_a_difference_are_not(tmp_path: Path) -> None:
    assert found(tmp_path, a=BLOCK[:7], b=[*BLOCK[:7], "y = 1"]) == (0, [])
    assert found(tmp_path, a=BLOCK, b=[*BLOCK[:4], "y = 1", *BLOCK[4:]]) == (0, [])


def test_blank_comment_and_import_lines_neither_count_nor_part(tmp_path: Path) -> None:
    spread = [*BLOCK[:3], "", "# why", "from a import (", "    b,", "    c,", ")", *BLOCK[3:]]
    assert found(tmp_path, a=BLOCK, b=spread) == (1, ["a/src/a/code.py:1-8 = b/src/b/code.py:1-14"])
    imports = [f"import m{i}" for i in range(9)]
    assert found(tmp_path, a=[*imports, "a = 1"], b=[*imports, "b = 1"]) == (0, [])


def test_a_long_run_is_one_finding(tmp_path: Path) -> None:
    long = [*BLOCK, *(f"y{i} = 0" for i in range(8))]
    assert found(tmp_path, a=long, b=["z = 0", *long]) == (1, ["a/src/a/code.py:1-16 = b/src/b/code.py:2-17"])


def test_within_one_file(tmp_path: Path) -> None:
    assert found(tmp_path, a=[*BLOCK, "z = 0", *BLOCK]) == (1, ["a/src/a/code.py:1-8 = a/src/a/code.py:10-17"])
    # The same line 12 times is no block that overlaps itself; 16 times it is two blocks side by side.
    assert found(tmp_path, a=["f()"] * 12) == (0, [])
    code, lines = found(tmp_path, a=["f()"] * 16)
    assert code == 1 and lines == ["a/src/a/code.py:1-8 = a/src/a/code.py:9-16"]


@pytest.mark.parametrize("folder", ["a/.venv/src/x", "a/tests", "runs/src", "a/src/build"])
def test_only_sources_are_compared(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "copy.py").write_text("\n".join(BLOCK))
    assert found(tmp_path, a=BLOCK) == (0, [])


def test_a_file_that_does_not_parse_is_still_compared(tmp_path: Path) -> None:
    code, lines = found(tmp_path, a=[*BLOCK, "def ("], b=BLOCK)
    assert code == 1 and len(lines) == 1
