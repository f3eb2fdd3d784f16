"""Convert files of the authors, in both directions; the kind of a file is told by its content.

FILE.ckpt -> FOLDER   a CompVis checkpoint as a folder of a pipeline (load with `ptq4dm sample`, or with diffusers)
FOLDER -> FILE.ckpt   the same checkpoint again, tensor for tensor
inputs.pth -> FILE.safetensors, and back   calibration records (`imagenet_input_*steps.pth`)
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("source", type=str, help="file of the authors, or what this command made of one")
    parser.add_argument("target", type=str, help="folder or file to write")
    parser.add_argument("--model", type=str | None, default=None, help="cin256-v2, lsun_beds256, lsun_churches256")
    parser.add_argument("--configuration", type=str | None, default=None, help="official YAML of another model")
    parser.add_argument("--weights", type=str, default="auto", help="of the U-Net: auto, ema or plain")
    parser.add_argument("--trust-pickle", action="store_true", help="read a pickle that can run code")


def run(arguments: Any) -> int:
    from pathlib import Path

    from paperkit.errors import UserError
    from ptq4dm.method.calibration import Records
    from ptq4dm.models import conversion
    from ptq4dm.models.official_quantized import read_inputs, write_inputs

    source, target = Path(arguments.source), Path(arguments.target)
    if arguments.weights not in ("auto", "ema", "plain"):
        raise UserError(f"--weights {arguments.weights}: it is one of auto, ema, plain")
    if source.is_dir():
        print(conversion.to_file(source, target))
    elif source.suffix == ".safetensors":
        write_inputs(target, Records.load(source))
        print(f"{target}: calibration records as the authors' scripts read them")
    elif target.suffix == ".safetensors":
        records = read_inputs(source, arguments.trust_pickle)
        records.save(target)
        print(f"{target}: {len(records)} calibration records")
    else:
        model = conversion.described(arguments.model, arguments.configuration)
        print(conversion.to_folder(source, target, model, arguments.weights, arguments.trust_pickle))
    return 0
