"""Recompute reference files through the code that users run, and compare every tensor."""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("files", nargs="+", type=str, help="reference files, or folders of them")
    parser.add_argument("--rtol", type=float, default=None, help="relative tolerance in place of each kind's own")


def run(arguments: Any) -> int:
    from litv2.verification.kinds import KINDS
    from paperkit.verification.verify import run as verify

    return verify(arguments.files, KINDS, arguments.rtol)
