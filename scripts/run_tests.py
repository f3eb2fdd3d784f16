"""run_tests.py PROJECT... [-- PYTEST ARGUMENTS]: each project's tests in that project's own environment.

Goes on past a failing project and past one whose environment cannot be made, and closes with a table, which times
set-ups and tests apart, and the plain line `N passed, N failed` (`, N skipped` where some were). The exit code is 1 if
anything failed or if a project ran no test.
Runs under the system's Python: it needs nothing but the standard library.
"""

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Outcome:
    project: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    setup: float = 0.0  # seconds
    tests: float = 0.0  # seconds
    note: str = ""


def run_project(project: str, pytest_args: list[str]) -> Outcome:
    """Set the project up, run its tests, and count them from pytest's own JUnit file."""
    start = time.monotonic()
    print(f"\n=== {project} ===", flush=True)
    code = subprocess.run(["make", "--no-print-directory", f"{project}-setup"], cwd=ROOT).returncode
    setup = time.monotonic() - start
    if code:
        return Outcome(project, failed=1, setup=setup, note="its environment could not be made")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        # One thread a process: two workers fill two cores, and results do not depend on the machine's core count.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        command = [f"{project}/.venv/bin/python", "-m", "pytest", f"{project}/tests", "--junitxml", str(report)]
        code = subprocess.run([*command, *pytest_args], cwd=ROOT, env=environment).returncode
        outcome = count(project, report)
    outcome.setup, outcome.tests = setup, time.monotonic() - start - setup
    if code and not outcome.failed:
        outcome.failed, outcome.note = 1, f"pytest ended with exit code {code}"
    return outcome


def count(project: str, report: Path) -> Outcome:
    """Read pytest's JUnit file; none at all means that pytest died, which counts as a failure."""
    try:
        suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return Outcome(project, failed=1, note="pytest wrote no report")
    total, failed, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites for key in keys)
        for keys in (("tests",), ("failures", "errors"), ("skipped",))
    )
    outcome = Outcome(project, total - failed - skipped, failed, skipped)
    if not total:
        outcome.failed, outcome.note = 1, "no test ran"
    return outcome


def main(arguments: list[str]) -> int:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    projects, pytest_args = arguments[:split], arguments[split + 1 :]
    outcomes: list[Outcome] = []
    interrupted = False
    try:
        for project in projects:
            outcomes.append(run_project(project, pytest_args))
    except KeyboardInterrupt:
        interrupted = True
    print(f"\n{'project':<12} {'passed':>7} {'failed':>7} {'skipped':>8} {'set-up s':>9} {'tests s':>8}")
    for one in outcomes:
        numbers = f"{one.passed:>7} {one.failed:>7} {one.skipped:>8} {one.setup:>9.0f} {one.tests:>8.0f}"
        print(f"{one.project:<12} {numbers}  {one.note}".rstrip())
    setup, tests = (sum(getattr(one, key) for one in outcomes) for key in ("setup", "tests"))
    print(f"{'together':<12} {'':>7} {'':>7} {'':>8} {setup:>9.0f} {tests:>8.0f}")
    passed, failed, skipped = (sum(getattr(one, key) for one in outcomes) for key in ("passed", "failed", "skipped"))
    print(f"\n{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    if interrupted:
        print("interrupted")
        return 130
    return 1 if failed or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
