"""Convert a released backbone file to safetensors, or back.

`spt convert FILE OUT --arch vit_base_patch16_224`, `spt convert FILE.safetensors OUT --to npz`
"""

from typing import Any, Literal


def add_arguments(parser: Any) -> None:
    """Options."""
    parser.add_argument("source", type=str, help="released file (npz, pth), or a safetensors file with --to")
    parser.add_argument("target", type=str, help="file to write")
    parser.add_argument("--arch", type=str, default="vit_base_patch16_224", help="timm architecture")
    parser.add_argument(
        "--to", type=Literal["timm", "npz", "mae", "moco", "swin"], default="timm", help="layout to write"
    )
    parser.add_argument("--sizes", type=dict | None, default=None, help="further arguments of timm's constructor")
    parser.add_argument("--part", type=str | None, default=None, help="which of several sets of weights in the file")
    parser.add_argument("--trust-pickle", action="store_true", help="read a file that wants to run code")


def run(arguments: Any) -> None:
    """Converts and says what was written."""
    from spt.models.backbones import create_backbone
    from spt.models.conversion import convert_file

    model = create_backbone(arguments.arch, 1, **(arguments.sizes or {}))
    given = {"trust_pickle": arguments.trust_pickle, "part": arguments.part}
    for line in convert_file(arguments.source, arguments.target, model, arguments.to, **given):
        print(line)
