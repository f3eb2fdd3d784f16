"""Recompute reference files through the code that users run, and compare every tensor."""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("files", nargs="+", type=str, help="reference files, or folders of them")
    parser.add_argument("--rtol", type=float, default=None, help="relative tolerance instead of each kind's own")


def run(arguments: Any) -> int:
    from paperkit.verification.verify import run as verify
    from snnet.verification.reference_kinds import KINDS

    return verify(arguments.files, KINDS, arguments.rtol)
