"""Options of the verbs that open a delta."""

from typing import Any


def add_task_arguments(parser: Any) -> None:
    """Where the delta and its backbone are."""
    parser.add_argument("--ckpt", type=str | None, default=None, help="run or delta folder (default: the newest run)")
    add_backbone_arguments(parser)


def add_backbone_arguments(parser: Any) -> None:
    """Where the backbone is."""
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")
    parser.add_argument("--file", type=str | None, default=None, help="pretrained file of the backbone")
    parser.add_argument(
        "--arch", type=str | None, default=None, help="timm architecture (default: what the delta names)"
    )
    parser.add_argument("--part", type=str | None, default=None, help="which of several sets of weights in that file")
    parser.add_argument("--trust-pickle", action="store_true", help="read a file that wants to run code")
