"""Convert between checkpoint files and folders of `save_pretrained`, in both directions.

FILE -> FOLDER   a released file of FASeg, or a .pkl or .pth of Mask2Former, to model.safetensors and config.json
                 (load with faseg.FASeg.from_pretrained)
FOLDER -> FILE   such a folder, or a run of `faseg train`, to a .pth of the authors' form, which their code loads; with
                 --backbone the backbone alone, by the names of another library
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("source", type=str, help="checkpoint file, or a folder made by this command or by training")
    parser.add_argument("target", type=str, help="folder to make, or .pth file to write")
    parser.add_argument(
        "--omega", type=int | None, default=None, help="windows for one that is kept, where it was not 32"
    )
    parser.add_argument(
        "--backbone",
        type=str | None,
        default=None,
        help="write the backbone by the names of torchvision, timm or mmseg",
    )
    parser.add_argument("--trust-pickle", action="store_true", help="read a pickle that can run code")


def run(arguments: Any) -> int:
    from pathlib import Path

    from faseg.models.conversion import to_file, to_folder
    from faseg.models.trained import is_run

    source, target = Path(arguments.source), Path(arguments.target)
    if source.is_dir() or is_run(source):
        print(to_file(source, target, arguments.backbone))
    else:
        print(to_folder(source, target, arguments.trust_pickle, omega=arguments.omega))
    return 0
