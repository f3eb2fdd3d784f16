"""Convert between the authors' checkpoint files and folders of `save_pretrained`, in both directions.

FILE -> FOLDER   model.safetensors and config.json (load with litv2.LITv2.from_pretrained), and rest.safetensors with
                 the neck and heads of a detector or a segmentation network
FOLDER -> FILE   a .pth of the authors' form, tensor for tensor what the folder came from
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("source", type=str, help="released file, or a folder made by this command")
    parser.add_argument("target", type=str, help="folder to make, or .pth file to write")
    parser.add_argument("--window", type=int | None, default=None, help="window of stage 3 in the config (default: 2)")
    parser.add_argument("--alpha", type=float | None, default=None, help="refuse weights of another alpha")
    parser.add_argument("--trust-pickle", action="store_true", help="read a pickle that can run code")
    parser.add_argument("--part", type=str | None, default=None, help="which of several state dicts in the file")


def run(arguments: Any) -> int:
    from pathlib import Path

    from litv2.models.conversion import to_folder, to_released

    source, target = Path(arguments.source), Path(arguments.target)
    if source.is_dir():
        print(to_released(source, target))
    else:
        trust, part = arguments.trust_pickle, arguments.part
        print(to_folder(source, target, arguments.window, arguments.alpha, trust, part))
    return 0
