"""Convert between the authors' checkpoint files and folders of `save_pretrained`, in both directions.

FILE -> FOLDER   model.safetensors and config.json (load with ecoformer.PVTv2 or ecoformer.Twins .from_pretrained), and
                 rest.safetensors with the unused projections of the released layers
FOLDER -> FILE   a .pth of the authors' form, tensor for tensor what the folder came from
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("source", type=str, help="released file, or a folder made by this command")
    parser.add_argument("target", type=str, help="folder to make, or .pth file to write")
    parser.add_argument("--nbits", type=int | None, default=None, help="refuse codes of another length")
    parser.add_argument(
        "--heads", type=list[int] | None, default=None, help="heads of each stage where no size says it"
    )
    parser.add_argument("--trust-pickle", action="store_true", help="read a pickle that can run code")


def run(arguments: Any) -> int:
    from pathlib import Path

    from ecoformer.models.conversion import to_file, to_folder

    source, target = Path(arguments.source), Path(arguments.target)
    if source.is_dir():
        print(to_file(source, target))
    else:
        changes = dict(nbits=arguments.nbits, num_heads=arguments.heads)
        print(to_folder(source, target, arguments.trust_pickle, **changes))
    return 0
