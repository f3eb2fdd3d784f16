"""`make test` on a made tree: what it counts, that it goes on past a failure, and how it closes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "run_tests.py"
MAKEFILE = """
%-setup:
	@test ! -e $*/cannot-be-made
"""
PASSES = "def test_one(): pass\n"
MIXED = """
import pytest

@pytest.mark.parametrize("number", range(3))
def test_three(number):
    assert number != 1

def test_skipped():
    pytest.skip("no GPU")

@pytest.mark.xfail(strict=True)
def test_expected():
    assert False

@pytest.fixture
def broken():
    raise RuntimeError("in the fixture")

def test_error(broken):
    pass
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "Makefile").write_text(MAKEFILE)
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    return tmp_path


def project(tree: Path, name: str, tests: str) -> Path:
    """A project whose environment is the one that runs this test."""
    folder = tree / name
    (folder / "tests").mkdir(parents=True)
    (folder / "tests" / f"test_{name}.py").write_text(tests)
    (folder / ".venv" / "bin").mkdir(parents=True)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return folder


def run_tests(tree: Path, *arguments: str) -> tuple[int, str, dict[str, list[str]]]:
    """Exit code, the whole output, and the words after each project's name in the closing table."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    result = subprocess.run(
        [sys.executable, str(tree / "scripts" / "run_tests.py"), *arguments],
        cwd=tree.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    table = result.stdout.rpartition("\nproject ")[2].splitlines()[1:-3]
    return result.returncode, result.stdout, {line.split()[0]: line.split()[1:] for line in table}


def test_counts_are_pytests_own(tree: Path) -> None:
    """An error in a fixture counts as failed, a skip and an expected failure as skipped (pytest's JUnit file)."""
    project(tree, "mixed", MIXED)
    code, output, table = run_tests(tree, "mixed")
    assert code == 1
    assert table["mixed"][:3] == ["2", "2", "2"]
    assert output.endswith("\n2 passed, 2 failed, 2 skipped\n")


def test_all_passed(tree: Path) -> None:
    project(tree, "one", PASSES)
    project(tree, "two", PASSES + "def test_two(): pass\n")
    code, output, table = run_tests(tree, "one", "two")
    assert (code, table["one"][:3], table["two"][:3]) == (0, ["1", "0", "0"], ["2", "0", "0"])
    assert output.endswith("\n3 passed, 0 failed\n")


def test_goes_on_past_every_kind_of_failure(tree: Path) -> None:
    project(tree, "failing", "def test_fails(): assert False\n")
    (project(tree, "unmade", PASSES) / "cannot-be-made").touch()
    project(tree, "unreadable", "def test_(:\n")
    project(tree, "dying", PASSES + "def test_dies():\n    import os; os._exit(3)\n")
    project(tree, "empty", "x = 1\n")
    project(tree, "late", PASSES + "import atexit, os; atexit.register(os._exit, 9)\n")
    project(tree, "good", PASSES)
    code, output, table = run_tests(tree, "failing", "unmade", "unreadable", "dying", "empty", "late", "good")
    assert code == 1
    assert [name for name, words in table.items() if words[1] == "0"] == ["good"]
    assert table["failing"][:3] == ["0", "1", "0"]
    assert " ".join(table["unmade"][5:]) == "its environment could not be made"
    assert " ".join(table["dying"][5:]) == "pytest wrote no report"
    assert " ".join(table["empty"][5:]) == "no test ran"
    assert " ".join(table["late"][5:]) == "pytest ended with exit code 9"
    assert output.endswith("\n2 passed, 6 failed\n")


def test_setup_and_tests_are_timed_apart(tree: Path) -> None:
    (tree / "Makefile").write_text("%-setup:\n\t@sleep 2\n")
    project(tree, "one", PASSES)
    project(tree, "two", PASSES + "import time\ndef test_two(): time.sleep(3)\n")
    _, output, table = run_tests(tree, "one", "two")
    header = output.rpartition("\nproject ")[2].splitlines()[0]
    assert header.endswith("set-up s  tests s")
    times = {name: [int(word) for word in words[3:]] for name, words in table.items()}
    assert times["one"][0] >= 2 and times["two"][0] >= 2 and times["two"][1] >= 3
    sums = re.search(r"^together +(\d+) +(\d+)$", output, re.MULTILINE)
    assert sums and int(sums[1]) >= 4 and abs(int(sums[2]) - times["one"][1] - times["two"][1]) <= 1  # rounded apart


def test_arguments_reach_pytest(tree: Path) -> None:
    project(tree, "some", PASSES + "def test_two(): assert False\n")
    code, output, table = run_tests(tree, "some", "--", "-k", "test_one")
    assert (code, table["some"][:3]) == (0, ["1", "0", "0"])
    assert output.endswith("\n1 passed, 0 failed\n")


def test_ctrl_c_closes_with_what_is_known(tree: Path) -> None:
    project(tree, "one", PASSES)
    project(tree, "long", "import time\ndef test_long(): open('begun', 'w').close(); time.sleep(60)\n")
    project(tree, "never", PASSES)
    process = subprocess.Popen(
        [sys.executable, str(tree / "scripts" / "run_tests.py"), "one", "long", "never"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tree / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert re.search(r"^one +1 +0 +0 ", output, re.MULTILINE) and "\nnever" not in output
    assert output.endswith("interrupted\n")


def test_one_thread_a_process(tree: Path) -> None:
    project(tree, "one", "import os\ndef test_one(): assert os.environ['OMP_NUM_THREADS'] == '1'\n")
    assert run_tests(tree, "one")[0] == 0


def test_no_project_is_a_failure(tree: Path) -> None:
    code, output, _ = run_tests(tree)
    assert code == 1 and re.search(r"^0 passed, 0 failed$", output, re.MULTILINE)
