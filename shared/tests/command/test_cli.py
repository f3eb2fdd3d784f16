"""The command line through a made console script: what it imports, its one-line errors, its exit codes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
import sys, time
from paperkit.command.cli import Verb, main

def own(argv, prog):
    print(prog, argv)

VERBS = {
    "work": Verb("does the work that --do names", "made_verbs.work"),
    "own": Verb("parses by itself", own),
    "typo": Verb("its module is missing", "made_verbs.nowhere"),
}
if __name__ == "__main__":
    code = main("made", "A made command.", VERBS)
    heavy = {"torch", "jsonargparse", "numpy", "rich"} & set(sys.modules)
    print("heavy:", *sorted(heavy), file=sys.stderr) if "--show-heavy" in sys.argv or len(sys.argv) < 2 else None
    sys.exit(code)
"""
WORK = '''
"""Does some work."""

import sys

class Odd(Exception):
    pass

class SIGTERMException(SystemExit):
    """As Lightning's: no exit code in it."""

def add_arguments(parser):
    parser.add_argument("--do", type=str, default="nothing", help="what to do")
    parser.add_argument("--count", type=int, default=1, help="how often")

def run(arguments):
    import time, warnings
    from paperkit.errors import Interrupted, UserError
    do = arguments.do
    if do == "nothing":
        warnings.warn("a library's notice")
    elif do == "seven":
        return 7
    elif do == "user":
        raise UserError("no file at x.ckpt; name a run folder\\n  or a file" + ", as said" * arguments.count)
    elif do == "odd":
        raise Odd("two\\n   lines")
    elif do == "empty":
        raise Odd
    elif do == "long":
        raise Odd("word " * 500)
    elif do == "interrupted":
        raise Interrupted("interrupted at step 3", 143)
    elif do == "lightning":
        raise SIGTERMException
    elif do == "lightning ctrl-c":
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)
    elif do == "exit":
        sys.exit(5)
    elif do == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    elif do == "print":
        for i in range(arguments.count):
            print("line", i)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "command.py").write_text(COMMAND)
    (tmp_path / "made_verbs").mkdir()
    (tmp_path / "made_verbs" / "__init__.py").touch()
    (tmp_path / "made_verbs" / "work.py").write_text(WORK)
    return tmp_path


def start(folder: Path, *argv: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "command.py", *argv],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "PAPERKIT_TRACEBACK"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors.splitlines()


def call(folder: Path, *argv: str, **variables: str) -> tuple[int, str, list[str]]:
    return finish(start(folder, *argv, **variables))


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_the_verbs_and_imports_nothing(argv: tuple[str, ...], folder: Path) -> None:
    code, output, errors = call(folder, *argv, *(["--show-heavy"] if argv else []))
    assert (code, errors) == (0, ["heavy:"])
    assert output.startswith("A made command.\n")
    assert "\nwork  does the work that --do names\nown   parses by itself\n" in output


def test_a_wrong_verb_is_one_line_and_imports_nothing(folder: Path) -> None:
    code, output, errors = call(folder, "wrok", "--show-heavy")
    assert (code, output) == (2, "")
    assert errors == ["error: made has no verb 'wrok'; it has: work, own, typo", "heavy:"]


def test_the_help_of_a_verb_does_not_import_torch(folder: Path) -> None:
    (folder / "torch.py").write_text("raise SystemExit('torch was imported')")
    code, output, errors = call(folder, "work", "--help", PYTHONPATH=str(folder))
    assert (code, errors) == (0, [])
    assert "Does some work." in output and "--count" in output and "how often" in output


@pytest.mark.parametrize(
    ("argv", "code", "line"),
    [
        (["--do", "user"], 1, "error: no file at x.ckpt; name a run folder or a file, as said"),
        (["--do", "odd"], 1, "error: Odd: two lines"),
        (["--do", "empty"], 1, "error: Odd"),
        (["--do", "interrupted"], 143, "error: interrupted at step 3"),
        (["--do", "lightning"], 143, "error: terminated"),
        (["--do", "lightning ctrl-c"], 130, "error: interrupted"),
        (["--cuont", "3"], 2, "error: unrecognized arguments: --cuont 3"),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_code(argv: list[str], code: int, line: str, folder: Path) -> None:
    assert call(folder, "work", *argv) == (code, "", [line])


def test_a_wrong_type_is_one_line(folder: Path) -> None:
    code, output, errors = call(folder, "work", "--count", "three")
    assert (code, output, len(errors)) == (2, "", 1)
    assert errors[0].startswith("error: ") and "count" in errors[0] and "three" in errors[0]


def test_a_module_that_cannot_be_imported_is_one_line(folder: Path) -> None:
    line = "error: ModuleNotFoundError: No module named 'made_verbs.nowhere'"
    assert call(folder, "typo") == (1, "", [line])


@pytest.mark.parametrize(("do", "code"), [("nothing", 0), ("seven", 7), ("exit", 5)])
def test_the_code_of_the_work_is_the_code_of_the_command(do: str, code: int, folder: Path) -> None:
    assert call(folder, "work", "--do", do) == (code, "", [])  # and the warning is not shown


def test_a_verb_may_parse_by_itself(folder: Path) -> None:
    assert call(folder, "own", "--any", "thing") == (0, "made own ['--any', 'thing']\n", [])


def test_a_tilde_after_the_equals_sign_is_the_home_folder(folder: Path) -> None:
    words = ("--root=~/data", "~x", "--note=a~b", "--root=~")
    expected = "made own ['--root=/homes/ann/data', '~x', '--note=a~b', '--root=/homes/ann']\n"
    assert call(folder, "own", *words, HOME="/homes/ann") == (0, expected, [])


def test_only_other_peoples_lines_are_shortened(folder: Path) -> None:
    """jsonargparse lists every alternative of a union; our own lines end with what to do."""
    _, _, (line,) = call(folder, "work", "--do", "long")
    assert len(line) == len("error: ") + 400 and line.endswith(" ...")
    _, _, (line,) = call(folder, "work", "--do", "user", "--count", "100")
    assert len(line) > 900 and line.endswith("as said")


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGINT, 130, "error: interrupted"),
        (signal.SIGTERM, 143, "error: ended by SIGTERM"),
        (signal.SIGHUP, 129, "error: ended by SIGHUP"),
    ],
)
def test_a_signal_ends_in_a_line(number: int, code: int, line: str, folder: Path) -> None:
    process = start(folder, "work", "--do", "wait")
    assert process.stdout and process.stdout.readline() == "waiting\n"
    process.send_signal(number)
    assert finish(process) == (code, "", [line])


@pytest.mark.parametrize(
    ("argv", "code", "last", "said"),
    [
        (["--do", "odd"], 1, "error: Odd: two lines", "Traceback (most recent call last):"),
        (["--do", "interrupted"], 143, "error: interrupted at step 3", "in run"),
        (["--do", "lightning"], 143, "error: terminated", "SIGTERMException"),
        (["--cuont", "3"], 2, "error: unrecognized arguments: --cuont 3", "Traceback"),
        (["--do", "nothing"], 0, '  warnings.warn("a library\'s notice")', "UserWarning: a library's notice"),
    ],
)
def test_the_traceback_on_request_changes_no_code(
    argv: list[str], code: int, last: str, said: str, folder: Path
) -> None:
    found, _, errors = call(folder, "work", *argv, PAPERKIT_TRACEBACK="1")
    assert (found, errors[-1]) == (code, last)
    assert any(said in line for line in errors)


def test_a_reader_that_leaves_is_no_error(folder: Path) -> None:
    process = start(folder, "work", "--do", "print", "--count", "100000")
    assert process.stdout and process.stderr and process.stdout.readline() == "line 0\n"
    process.stdout.close()  # as `| head -1` does
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_to_a_full_disk_is_one_line(folder: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "command.py", "work", "--do", "print"]
        result = subprocess.run(command, cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert result.stderr == "error: OSError: [Errno 28] No space left on device\n"
