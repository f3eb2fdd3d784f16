"""The help of every verb."""

import subprocess
import sys

import pytest
from made import here

from snnet.cli import VERBS


def test_help_of_every_verb_imports_nothing_heavy() -> None:
    """A process of its own for each."""
    script = (
        "import sys\nfrom snnet.cli import main\ntry: main()\n"
        "except SystemExit as end: code = end.code\n"
        "print('torch' in sys.modules, 'timm' in sys.modules, file=sys.stderr)\nsys.exit(code)"
    )
    verbs = ("train", "eval", "figures", "verify", *VERBS)
    for words in ([], ["--help"], *([verb, "--help"] for verb in verbs)):
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "False False\n"), (words, done.stderr)
        assert "usage: snnet" in done.stdout
        if not words:
            assert all(verb in done.stdout for verb in verbs)


def test_help_of_an_engine(capsys: pytest.CaptureFixture[str]) -> None:
    """The default engine's options and the other engines' names; an engine's own options when it is named."""
    for words, option in (((), "--joint_epochs"), (("--engine", "images"), "--network.anchors")):
        assert here("train", *words, "--help") == 0
        shown = capsys.readouterr().out
        assert option in shown and "digits" in shown and "images" in shown
