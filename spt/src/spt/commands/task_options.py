"""Options of the verbs that open a delta."""

from __future__ import annotations

from typing import Any


def add_task_arguments(parser: Any) -> None:
    """Where the backbone is."""
    parser.add_argument("--file", type=str | None, default=None, help="pretrained file of the backbone")
    parser.add_argument(
        "--arch", type=str | None, default=None, help="timm architecture (default: what the delta names)"
    )
    parser.add_argument("--trust-pickle", action="store_true", help="read a file that wants to run code")
