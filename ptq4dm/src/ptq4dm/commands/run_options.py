"""The options that say which quantised network of a run is meant, shared by the verbs that open one."""

from typing import Any


def add_run_options(parser: Any) -> None:
    """--ckpt, --seed, --width and --model, as `ptq4dm.deployment.quantised_run.open_quantised` takes them."""
    parser.add_argument("--ckpt", type=str, required=True, help="run folder")
    parser.add_argument(
        "--seed", type=int | None, default=None, help="network of an embedded experiment (default: the first)"
    )
    parser.add_argument("--width", type=str, default="w4a8", help="bits of an embedded experiment's network")
    parser.add_argument("--model", type=str | None, default=None, help="where a run's float model is now, if moved")
