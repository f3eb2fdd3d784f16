"""The command line of a paper: verbs that import late, errors of one line, exit codes that schedulers understand.

A verb names the module that implements it; that module is imported only when its verb is asked for, and holds two
functions:

    add_arguments(parser)   declares the options on a jsonargparse parser (no heavy import here: `--help` calls it)
    run(arguments)          does the work and returns the exit code (None means 0)

A verb whose options depend on the command line is a function `work(argv, prog)` that parses by itself
(`paperkit.command.engines`).
Exit codes: 0 done, 1 the work failed, 2 the command was not understood, 130 Ctrl-C, 143 SIGTERM.
With PAPERKIT_TRACEBACK=1 in the environment the traceback stands before the line, and libraries may speak.
"""

import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from paperkit.errors import Interrupted, UserError
from paperkit.results.command_line import note_command

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

TRACEBACK_VARIABLE = "PAPERKIT_TRACEBACK"
_LONGEST_LINE = 400  # a union type's error lists every alternative of jsonargparse; the beginning says enough


@dataclass(frozen=True)
class Verb:
    """One verb of a console script: its line in the overview, and the module or function that implements it."""

    help: str
    work: str | Callable[[list[str], str], int | None]


def main(paper: str, description: str, verbs: Mapping[str, Verb], argv: Sequence[str] | None = None) -> int:
    """Run one verb of `paper` and return the exit code (the console script passes it to `sys.exit`)."""
    argv = [_without_tilde(word) for word in (sys.argv[1:] if argv is None else argv)]
    if not argv or argv[0] in ("-h", "--help", "help"):
        return guarded(lambda: print(overview(paper, description, verbs)))
    if argv[0] not in verbs:
        print(f"error: {paper} has no verb '{argv[0]}'; it has: {', '.join(verbs)}", file=sys.stderr)
        return 2
    silence_libraries()
    note_command(paper, argv)
    with _signals_end_in_a_line():
        return guarded(lambda: _run_verb(verbs[argv[0]].work, argv[1:], f"{paper} {argv[0]}"))


def overview(paper: str, description: str, verbs: Mapping[str, Verb]) -> str:
    """The text of `<paper> --help`: one line a verb."""
    width = max(map(len, verbs))
    lines = [f"{name:<{width}}  {verb.help}" for name, verb in verbs.items()]
    return f"{description}\n\nusage: {paper} VERB [OPTIONS], {paper} VERB --help\n\n" + "\n".join(lines)


def make_parser(prog: str, description: str | None = None) -> "ArgumentParser":
    """A jsonargparse parser that raises instead of printing sixty lines of usage, and builds nothing that a file names.

    Values are plain; a `class_path` in one is text like any other and is neither imported nor called.
    """
    from argparse import RawDescriptionHelpFormatter

    from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    class Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Keeps the lines of the description."""

    set_parsing_settings(instantiate_subclass_spec_in_any=False, import_path_denylist=["*"])
    return ArgumentParser(prog=prog, description=description, exit_on_error=False, formatter_class=Formatter)


def guarded(work: Callable[[], int | None]) -> int:
    """Call `work`, turning what it raises into one line on stderr and an exit code."""
    try:
        code = work() or 0
        sys.stdout.flush()  # here, where a full disk or a reader that left can still be answered
        return code
    except UserError as error:
        return _fail(str(error), 1, error)
    except Interrupted as error:
        return _fail(str(error), error.exit_code, error)
    except KeyboardInterrupt as error:
        return _fail("interrupted", 128 + signal.SIGINT, error)
    except SystemExit as error:
        if type(error).__name__ == "SIGTERMException":  # Lightning's: a SystemExit without a code, which would be a 0
            return _fail("terminated", 128 + signal.SIGTERM, error)
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's answer to Ctrl-C is an exit with 1
            return _fail("interrupted", 128 + signal.SIGINT, error)
        return error.code if isinstance(error.code, int) else 0 if error.code is None else _fail(error.code, 1, error)
    except BrokenPipeError:
        _drop_output()  # the reader left, as `head` does
        return 0
    except Exception as error:
        message = f"{type(error).__name__}: {error}".rstrip(": ")
        if type(error).__name__ in ("ArgumentError", "ParserError"):
            return _fail(_shortened(str(error)), 2, error)
        return _fail(_shortened(message), 1, error)


def silence_libraries() -> None:
    """Keep tips, notices and deprecation warnings of libraries off the user's screen."""
    if os.environ.get(TRACEBACK_VARIABLE):
        return
    logging.disable(logging.WARNING)  # Lightning sets its loggers' levels when it is imported, which is later than this
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore")


def _without_tilde(word: str) -> str:
    """`--option=~/folder` and `key=~/folder` as meant; a shell expands only words that begin with the tilde."""
    name, equals, value = word.partition("=")
    return f"{name}={os.path.expanduser(value)}" if equals and value.startswith("~") else word


@contextlib.contextmanager
def _signals_end_in_a_line() -> Iterator[None]:
    """SIGTERM and SIGHUP raise, wherever the work is; what can save at a signal takes them over while it runs.

    One that is ignored (`nohup`) stays ignored.
    """
    ours = [signal.SIGTERM, signal.SIGHUP] if threading.current_thread() is threading.main_thread() else []
    taken = [number for number in ours if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> None:
    raise Interrupted(f"ended by {signal.Signals(number).name}", 128 + number)


def _run_verb(work: str | Callable[[list[str], str], int | None], argv: list[str], prog: str) -> int | None:
    if not isinstance(work, str):
        return work(argv, prog)
    module = importlib.import_module(work)
    parser = make_parser(prog, module.__doc__)
    module.add_arguments(parser)
    return module.run(parser.parse_args(argv))


def _shortened(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 4] + " ..."


def _fail(message: str, code: int, error: BaseException) -> int:
    from paperkit.files.runs import process_rank  # late: a command that ends well does not need it

    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    if not (getattr(error, "everywhere", False) and process_rank()):
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _drop_output() -> None:
    """Send what is still to be written nowhere; else the interpreter complains when it flushes at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
