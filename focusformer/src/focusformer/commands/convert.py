"""Convert between AutoFormer's checkpoint files and folders of `save_pretrained`, in both directions.

FILE -> FOLDER   model.safetensors and config.json with the space (load with focusformer.SavedSupernet.from_pretrained)
FOLDER -> FILE   a .pth of the official form, tensor for tensor what the folder came from, or .safetensors
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("source", type=str, help="supernet-tiny.pth, -small, -base, checkpoint.pth, or a folder")
    parser.add_argument("target", type=str, help="folder to make, or .pth or .safetensors file to write")
    space = "of a file: ti, s, b, digits, or a YAML file (default: by the shapes of its weights)"
    parser.add_argument("--space", type=str | None, default=None, help=space)
    parser.add_argument("--trust-pickle", action="store_true", help="read a pickle that can run code")


def run(arguments: Any) -> int:
    from pathlib import Path

    from focusformer.models.conversion import to_file, to_folder

    source, target = Path(arguments.source), Path(arguments.target)
    if source.is_dir():
        print(to_file(source, target))
    else:
        print(to_folder(source, target, arguments.trust_pickle, arguments.space))
    return 0
