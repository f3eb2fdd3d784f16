"""The sub-network that a verb works on, as its options name it; no torch before it is read."""

from typing import Any


def add_supernet_options(parser: Any, required: bool) -> None:
    """`--ckpt` and what a file does not say of itself."""
    weights = "run, folder of save_pretrained or of extract, or file under AutoFormer's keys"
    parser.add_argument("--ckpt", type=str if required else str | None, required=required, help=weights)
    space = "of a file: ti, s, b, digits, or a YAML file (default: by the shapes of its weights)"
    parser.add_argument("--space", type=str | None, default=None, help=space)
    parser.add_argument("--trust-pickle", action="store_true", help="read weights whose file may run code")


def add_subnet_options(parser: Any) -> None:
    """Those, and which sub-network of a supernet."""
    add_supernet_options(parser, required=True)
    text = "of a supernet: one line as `focusformer search` prints it, a JSON file, or AutoFormer-T, -S or -B"
    parser.add_argument("--architecture", type=str | None, default=None, help=text)


def subnet_of(arguments: Any) -> Any:
    """The sub-network in eval mode.

    Raises:
        UserError: what cannot be read, or does not fit.
    """
    from focusformer.models.folders import load_subnet
    from focusformer.models.released import read_architecture

    chosen = None if arguments.architecture is None else read_architecture(arguments.architecture)
    return load_subnet(arguments.ckpt, chosen, arguments.trust_pickle, arguments.space)
