"""`make demo` on a made tree: four papers, of which one works, one fails, one leaves nothing and one writes rubbish."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from paperkit.results import report
from paperkit.results.metrics import Claim, Metrics, Row

SCRIPT = Path(__file__).parents[2] / "scripts" / "demo.py"
MAKEFILE = """
# A paper's target runs its `train` or `eval` script in the folder of the tree, as the true ones do.
%-train:
	@sh $*/train.sh $(ARGS)
%-eval:
	@sh $*/eval.sh $(ARGS)
demo:
	@$(PYTHON) {script} --root . $(ARGS)
"""
START = """run=runs/{p}/new
mkdir -p $run/figures
date -u +%Y-%m-%dT%H:%M:%S > $run/started
cp $run/started $run/finished
"""


class Page(HTMLParser):
    """Checks that tags are balanced; gathers images, links, and the text of each paper's section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.sections: dict[str, str] = {}
        self.section = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "section":
            self.section = given["id"] or ""
        if tag == "img":
            self.images.append(given)
        self.links += [given[key] or "" for key in ("href", "src") if key in given]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        self.sections[self.section] = self.sections.get(self.section, "") + data + " "


def metrics(paper: str, arm: str) -> Metrics:
    rows = [
        Row(arm, "accuracy", [91.0, 93.0], "%"),
        Row(arm, "params", [5717416]),
        Row("base", "loss", [0.25, float("nan")]),
    ]
    claims = [Claim("ours <beats> the base", True, True, "9 points"), Claim("ours is faster", False, False)]
    return Metrics(paper, [3, 7], 12.34, rows, claims, versions={"torch": "2.99.9"}, threads=1)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`able` works; `broken` trained well in an older run and fails now; `idle` leaves no run; `odd` writes rubbish."""
    (tmp_path / "Makefile").write_text(MAKEFILE.format(script=SCRIPT))
    for paper in ("able", "broken", "idle", "odd"):
        (tmp_path / paper / "src" / paper).mkdir(parents=True)
        (tmp_path / paper / "src" / paper / "__init__.py").touch()
        (tmp_path / paper / "pyproject.toml").write_text(f'[project]\nname = "{paper}"\ndescription = "{paper} & co"\n')
        (tmp_path / paper / "eval.sh").write_text(
            f"cp {paper}/metrics.json runs/{paper}/new/ && echo evaluated {paper}\n"
        )
        (tmp_path / paper / "train.sh").write_text(START.format(p=paper) + f"echo trained {paper} $1\n")
        metrics(paper, "ours").write(tmp_path / paper / "metrics.json")
        old = tmp_path / "runs" / paper / "old"
        metrics(paper, "OLDARM").write(old / "metrics.json")
        for mark in ("started", "finished"):
            (old / mark).write_text("2020-01-01T00:00:00")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "pyproject.toml").touch()
    figure, axes = report.figure(width=2, height=1)
    axes.set_title("Ours & the others")
    report.save_figure(figure, tmp_path / "curve.png")
    train = tmp_path / "able" / "train.sh"
    figures = "cp curve.png runs/able/new/figures/; echo torn > runs/able/new/figures/torn.png\n"
    train.write_text(train.read_text() + figures + "cp able/env.json runs/able/new/\n")
    (tmp_path / "able" / "env.json").write_text(
        json.dumps({"cpu": {"model": "Abacus", "cores": 2}, "commit": "abc123"})
    )
    (tmp_path / "broken" / "eval.sh").write_text(
        "printf 'bar 10%%\\rbar 100%%\\r\\n'; printf '\\033[31merror: <no> luck\\033[0m\\n' >&2; exit 3\n"
    )
    (tmp_path / "idle" / "train.sh").write_text("echo nothing to do\n")
    (tmp_path / "idle" / "eval.sh").write_text("echo evaluated the old run\n")
    (tmp_path / "odd" / "metrics.json").write_text('{"schema": 1, "rows": [{"arm": 3}]}')
    return tmp_path


def demo(tree: Path, *arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, str(SCRIPT), "--root", str(tree), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_demo_goes_on_and_shows_only_what_ran_now(tree: Path) -> None:
    code, output, _ = demo(tree)
    assert code == 1
    assert "trained able" in output and "error: <no> luck" in output and "trained odd" in output
    assert re.search(r"^able +ran ", output, re.MULTILINE)
    assert re.search(r"^broken +failed .* make broken-eval ended with exit code 2$", output, re.MULTILINE)
    text = (tree / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not [name for name in os.listdir(tree) if ".tmp-" in name]
    assert "OLDARM" not in text
    assert "1 of 4 papers ran, 3 failed; 1 of 1 asserted claims held." in page.sections[""]

    able = " ".join(page.sections["able"].split())
    assert able.startswith("able able & co Claims held asserted ours <beats> the base (9 points)")
    assert "not held reported ours is faster" in able
    assert "seed 3 seed 7 ours accuracy 92 1.414 % 91 93 params 5,717,416 base loss n/a n/a 0.25 n/a" in able
    assert "runs/able/new/figures/curve.png" in able
    assert "runs/able/new/figures/torn.png is not a PNG file." in able
    for fact in ("12.3", "threads 1", "torch 2.99.9", "Abacus, 2 cores", "abc123", "3, 7"):
        assert fact in able

    broken = page.sections["broken"]
    assert "Failed: make broken-eval ended with exit code 2" in " ".join(broken.split())
    assert "bar 100%\nerror: <no> luck\n" in broken and "bar 10%\n" not in broken and "\x1b" not in broken
    assert "Failed: no new finished run in runs/idle" in " ".join(page.sections["idle"].split())
    assert (
        "the results runs/odd/new/metrics.json have another form than expected: 'claims' is missing"
        in page.sections["odd"]
    )


def test_page_needs_no_other_file(tree: Path) -> None:
    code, _, _ = demo(tree, "--only", "able")
    text = (tree / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert code == 0 and set(page.sections) == {"", "able"}
    (image,) = page.images
    assert image["alt"] == "Ours & the others"
    kind, data = (image["src"] or "").split(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data) == (tree / "curve.png").read_bytes()
    # Links lead inside the page or to the run folder; nothing is loaded from anywhere.
    assert {link for link in page.links if not link.startswith("data:")} == {"#able", "runs/able/new"}
    assert not re.search(r"https?://|<script|@import|url\(", text)


def test_two_runs_of_the_demo(tree: Path) -> None:
    """A second run over the same name leaves no new finished run: the first one's results are not shown as its own."""
    assert demo(tree, "--only", "able")[0] == 0
    code, output, _ = demo(tree, "--only", "able")
    assert code == 1 and "no new finished run in runs/able" in output
    assert "accuracy" not in (tree / "report.html").read_text(encoding="utf-8")


def test_arguments_of_make_demo_stay_with_the_demo(tree: Path) -> None:
    """Make hands its command line variables down to every make below; the papers must not get them."""
    command = ["make", "demo", f"PYTHON={sys.executable}", "ARGS=--only able --output page.html"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trained able\n" in done.stdout and "trained able --only" not in done.stdout
    assert (tree / "page.html").exists() and not (tree / "report.html").exists()


def test_bad_input_is_one_line(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    code, _, error = demo(tree, "--only", "able", "swin")
    assert code == 2 and error == "error: no paper swin; there are: able, broken, idle, odd\n"
    code, _, error = demo(tmp_path_factory.mktemp("empty"))
    assert code == 2 and error == "error: no paper (none); there are: none\n"
    code, output, error = demo(tree, "--output", str(tree / "Makefile" / "page.html"))
    assert code == 1 and re.fullmatch(r"error: cannot write \S+page\.html: .+\n", error)
    assert "trained" not in output  # said before the work, not after it


def test_interrupt_keeps_what_is_done(tree: Path) -> None:
    (tree / "broken" / "train.sh").write_text("echo waiting; exec sleep 60\n")
    command = [sys.executable, str(SCRIPT), "--root", str(tree)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout
        while "waiting" not in process.stdout.readline():
            pass
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does
        start = time.monotonic()
        output = process.stdout.read()
    assert process.returncode == 130 and time.monotonic() - start < 20
    assert re.search(r"^broken +failed .* interrupted$", output, re.MULTILINE)
    sections = Page((tree / "report.html").read_text(encoding="utf-8")).sections
    assert "5,717,416" in sections["able"] and "interrupted" in sections["broken"] and "Not run." in sections["odd"]
