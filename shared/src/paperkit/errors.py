"""The two ways a command ends early without a traceback: a mistake that the user can mend, and a signal.

The command line catches both without importing torch or Lightning.
"""


def one_line(text: str) -> str:
    """`text` with its line breaks turned into single spaces."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


class UserError(Exception):
    """Something the user can mend: one line that says what is wrong, the value, and what would be right.

    The command line prints `error: <line>` and exits with 1. Line breaks in `message` become spaces. It stays one line
    out of a DataLoader's worker process too: torch raises it again with the worker's whole traceback as its message,
    whose last line is the message.

    Args:
        everywhere: every process of the run raises it, so that one of them is enough to say it.
    """

    def __init__(self, message: str, everywhere: bool = False) -> None:
        if message.startswith(f"Caught {type(self).__name__} ") and "\nOriginal Traceback" in message:
            message = message.rstrip().rpartition("\n")[2].partition(": ")[2]
        super().__init__(one_line(message))
        self.everywhere = everywhere


class Interrupted(BaseException):  # it is no error, and what answers to errors lets it pass
    """The command was told to stop by a signal; a run has left a checkpoint to resume from.

    Args:
        message: one line, `interrupted at step N; resume with: ...`.
        exit_code: 128 plus the signal's number: 143 for SIGTERM, 130 for SIGINT (Ctrl-C).
        everywhere: as for `UserError`.
    """

    def __init__(self, message: str, exit_code: int, everywhere: bool = False) -> None:
        super().__init__(message, exit_code)  # both, so that the exception survives pickling between processes
        self.exit_code, self.everywhere = exit_code, everywhere

    def __str__(self) -> str:
        return one_line(self.args[0])
