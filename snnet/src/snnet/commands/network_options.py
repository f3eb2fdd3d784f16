"""The options that name a network, for every verb that works on one (no heavy import: `--help` needs them)."""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument(
        "--ckpt", type=str | None, default=None, help="run folder, saved folder or weights (default: the newest run)"
    )
    parser.add_argument("--released", type=str | None, default=None, help="a released SN-Net, such as deit_ti_s_b")
    parser.add_argument(
        "--anchors", type=list[str] | None, default=None, help="timm names: [deit_tiny_patch16_224,...]"
    )
    parser.add_argument("--num_classes", type=int, default=1000, help="classes, with --anchors")
    parser.add_argument("--seed", type=int | None, default=None, help="which seed's network of an embedded run")
    parser.add_argument("--trust-pickle", action="store_true", help="read weights whose file may run code")
    parser.add_argument("--part", type=str | None, default=None, help="which of several state dicts in the weights")
    parser.add_argument("--root", type=str, default="runs", help="folder of all runs")
