"""Recompute reference files and compare: `spt verify FILE...` (a folder stands for its files). 0 when all agree."""

from __future__ import annotations

from typing import Any


def add_arguments(parser: Any) -> None:
    """Options."""
    parser.add_argument("files", nargs="+", type=str, help="reference files or folders")
    parser.add_argument(
        "--rtol", type=float | None, default=None, help="relative tolerance in place of each kind's own"
    )


def run(arguments: Any) -> int:
    """One line a tensor, a closing line, and the exit code."""
    from spt.verification.kinds import verify

    return verify(arguments.files, arguments.rtol)
