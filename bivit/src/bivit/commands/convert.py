"""Convert weights by the names of timm, DeiT or Microsoft's Swin to a folder of `save_pretrained`, and back.

FILE -> FOLDER   model.safetensors and config.json (load with bivit.from_pretrained). Float weights stay float; with
                 --method they become the start of a binary network, whose scales are set from them.
FOLDER -> FILE   a .pth or .safetensors file by the names that the folder's weights came with, or by --names
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    from bivit.commands.checkpoint import add_file_arguments

    parser.add_argument("source", type=str, help="file, or a folder made by this command or by training")
    parser.add_argument("target", type=str, help="folder to make, or .pth or .safetensors file to write")
    names = "whose names a file gets (default: those that the weights came with)"
    parser.add_argument("--names", choices=["timm", "microsoft"], default=None, help=names)
    add_file_arguments(parser)


def run(arguments: Any) -> int:
    from pathlib import Path

    from bivit.models.conversion import to_file, to_folder

    source, target = Path(arguments.source), Path(arguments.target)
    if source.is_dir():
        print(to_file(source, target, arguments.names))
    else:
        told = dict(arch=arguments.arch, method=arguments.method, options=arguments.options)
        print(to_folder(source, target, arguments.trust_pickle, **told))
    return 0
