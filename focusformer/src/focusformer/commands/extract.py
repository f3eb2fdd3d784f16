"""One architecture of a supernet as a plain model of its own: only its own weights, the same outputs.

The folder loads with focusformer.StaticViT.from_pretrained, and through timm with
timm.create_model("focusformer_subnet", pretrained_cfg_overlay=dict(file=FOLDER)). Fine-tune it with
`focusformer train --engine finetune`.
"""

from typing import Any

LARGEST_DIFFERENCE = 1e-5  # of a logit, relative to the largest


def add_arguments(parser: Any) -> None:
    from focusformer.commands.subnet_options import add_supernet_options

    text = "192/3,3,4/3.5,4,4 (width, heads, ratios), a JSON file in AutoFormer's form, or AutoFormer-T, -S or -B"
    parser.add_argument("architecture", type=str, help=text)
    add_supernet_options(parser, required=False)
    place = "folder to write (default: runs/focusformer/extract/NAME)"
    parser.add_argument("--output", type=str | None, default=None, help=place)


def run(arguments: Any) -> int:
    from pathlib import Path

    from focusformer.deployment.extracting import extract
    from focusformer.method.cost import cost
    from focusformer.models.folders import load_supernet
    from focusformer.models.released import named_architecture, read_architecture, released_file
    from paperkit.errors import UserError

    chosen, path = read_architecture(arguments.architecture), arguments.ckpt
    name = (
        str(chosen).replace("/", "_") if named_architecture(arguments.architecture) is None else arguments.architecture
    )
    if path is None:
        if name != arguments.architecture:
            raise UserError(f"say with --ckpt which supernet {chosen} is cut out of")
        path = released_file(name)
    supernet = load_supernet(path, arguments.trust_pickle, arguments.space)
    folder = Path(arguments.output or Path("runs/focusformer/extract") / name)
    difference = extract(supernet, chosen, folder, LARGEST_DIFFERENCE)
    count, flops = (cost(supernet.sizes, chosen, kind) for kind in ("params", "official_flops"))
    print(
        f"{folder}: {chosen}, {count:,.0f} parameters, {flops / 1e9:.4g} G official FLOPs; logits differ from the "
        f"supernet's by {difference:.2g} of the largest at most"
    )
    return 0
