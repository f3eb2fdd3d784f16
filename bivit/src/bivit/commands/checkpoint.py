"""The checkpoint that a verb works on, as its options name it; no torch before it is read."""

from typing import Any


def add_checkpoint_arguments(parser: Any) -> None:
    """`--ckpt` and what tells the contents of a file apart."""
    weights = "run, folder of save_pretrained or of pack, or file by names of timm, DeiT or Microsoft's Swin"
    parser.add_argument("--ckpt", type=str, required=True, help=weights)
    add_file_arguments(parser)


def add_file_arguments(parser: Any) -> None:
    """What tells the contents of a file apart."""
    parser.add_argument("--arch", type=str | None, default=None, help="timm's name of what a file holds")
    parser.add_argument("--options", type=dict | None, default=None, help="sizes of a file's network that differ")
    by = "how a file without scales is binary: float, bibert, bivit_mean-w1a1, ... (METHOD or METHOD-BITS)"
    parser.add_argument("--method", type=str | None, default=None, help=by)
    parser.add_argument("--trust-pickle", action="store_true", help="read weights whose file may run code")


def classifier_of(arguments: Any) -> Any:
    """The network in eval mode.

    Raises:
        UserError: what cannot be read, or does not fit.
    """
    from bivit.models.classifier import load_classifier

    return load_classifier(arguments.ckpt, arguments.trust_pickle, arguments.arch, arguments.method, arguments.options)
