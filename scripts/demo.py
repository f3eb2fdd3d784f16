"""demo.py [--only PAPER...] [--output FILE]: every paper's embedded experiment, then one page with tables and figures.

Runs `make <paper>-train` and `make <paper>-eval` for each paper of the tree, shows their output, goes on past a paper
that fails, and writes a self-contained HTML page (figures inside, no network), anew after every paper. Only what ran
now is shown: a paper that fails appears with the end of its output, never with an older run's results.
Exit code 1 if any paper failed, 130 after Ctrl-C. Runs in shared's environment.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from paperkit.errors import UserError
from paperkit.files.atomic import write_atomic
from paperkit.files.runs import RunFolder
from paperkit.results.metrics import Metrics
from report_page import STATES, Outcome, page

ROOT = Path(__file__).resolve().parent.parent
TAIL_LINES = 40
# What `make demo ARGS=...` hands down to every make below it: meant for the demo, not for the papers.
FOR_DEMO_ONLY = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "ARGS", "CONFIG", "CKPT"}
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b\x0c\x0e-\x1f]")


def find_papers(root: Path) -> dict[str, str]:
    """Name and description of every folder that holds a pyproject.toml and a package of its own name."""
    papers = {}
    for project in sorted(root.glob("*/pyproject.toml")):
        name = project.parent.name
        if (project.parent / "src" / name / "__init__.py").is_file():
            described = re.search(r'^description\s*=\s*"(.*)"\s*$', project.read_text(encoding="utf-8"), re.MULTILINE)
            papers[name] = described[1].replace('\\"', '"') if described else ""
    return papers


def stream(command: list[str], root: Path) -> tuple[int, str]:
    """Runs a command, passing its output on as it comes; returns the exit code and the last lines of the output."""
    kept = b""
    environment = {key: value for key, value in os.environ.items() if key not in FOR_DEMO_ONLY}
    with subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout
        try:
            while chunk := os.read(process.stdout.fileno(), 65536):
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
                kept = (kept + chunk)[-100_000:]
        except KeyboardInterrupt:  # the terminal told the command as well; it may have a checkpoint to write
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.terminate()
            raise
    # A progress bar rewrites its line after a carriage return: what stood last is what was seen.
    lines = [CONTROL.sub("", line.rstrip("\r").split("\r")[-1]) for line in kept.decode(errors="replace").split("\n")]
    return process.returncode, "\n".join([line.rstrip() for line in lines if line.strip()][-TAIL_LINES:])


def finished_runs(root: Path, paper: str) -> list[Path]:
    """Run folders of a paper that came to their end, the newest first."""
    return [run.path for run in RunFolder.started(root / "runs", paper) if run.finished]


def run_paper(outcome: Outcome, root: Path) -> None:
    """Trains and evaluates one paper and fills in its outcome."""
    start = time.monotonic()
    outcome.state, outcome.reason = "failed", "interrupted"  # what stands here if Ctrl-C comes
    try:
        before = set(finished_runs(root, outcome.paper))
        for verb in ("train", "eval"):
            target = f"{outcome.paper}-{verb}"
            print(f"\n=== {target} ===", flush=True)
            code, outcome.tail = stream(["make", "--no-print-directory", target], root)
            if code:
                outcome.reason = f"make {target} ended with exit code {code}"
                return
        runs = [run for run in finished_runs(root, outcome.paper) if run not in before]
        if not runs:
            outcome.reason = f"no new finished run in runs/{outcome.paper}"
            return
        outcome.run = runs[0]
        outcome.metrics = Metrics.read(outcome.run / "metrics.json")
        outcome.environment = read_environment(outcome.run / "env.json")
        outcome.state, outcome.reason = "ok", ""
    except (OSError, UserError) as error:
        outcome.reason = str(error).replace(f"{root}/", "")
    finally:
        outcome.seconds = time.monotonic() - start


def read_environment(path: Path) -> dict[str, Any]:
    """env.json, or nothing: the page can do without it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description="Every paper's embedded experiment, and one page.")
    parser.add_argument("--only", nargs="+", metavar="PAPER", help="these papers and no other")
    parser.add_argument("--output", type=Path, help="the page (default: report.html in the repository's root)")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args()
    root = options.root.resolve()
    papers = find_papers(root)
    chosen = options.only or list(papers)
    if unknown := [paper for paper in chosen if paper not in papers] or ([] if chosen else ["(none)"]):
        print(f"error: no paper {', '.join(unknown)}; there are: {', '.join(papers) or 'none'}", file=sys.stderr)
        return 2
    output = (options.output or root / "report.html").resolve()
    outcomes = [Outcome(paper, papers[paper]) for paper in chosen]
    interrupted = False
    try:
        write_atomic(output, page(outcomes, root))  # a page that cannot be written is news before the hour of work
        for outcome in outcomes:
            try:
                run_paper(outcome, root)
            except KeyboardInterrupt:
                interrupted = True
            write_atomic(output, page(outcomes, root))
            if interrupted:
                break
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n=== demo ===")
    for outcome in outcomes:
        print(f"{outcome.paper:<12} {STATES[outcome.state]:<8} {outcome.seconds:7.1f} s  {outcome.reason}".rstrip())
    print(f"report: {output}")
    return 130 if interrupted else int(any(outcome.state != "ok" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
