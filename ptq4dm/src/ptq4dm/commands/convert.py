"""Convert files of the authors, in both directions.

FILE.ckpt -> FOLDER     a CompVis checkpoint as a folder of a pipeline (for `ptq4dm sample`, or diffusers itself)
FOLDER -> FILE.ckpt     the same checkpoint again, tensor for tensor
RUN -> FILE.pth         a run of the engine `ldm` as a file of the authors' quantisation scripts
FILE.pth -> FOLDER      such a file, with --float and --inputs, as a folder of packed integers (as `ptq4dm pack` writes)
FILE.pth -> FILE.safetensors, and back: calibration records (`imagenet_input_*steps.pth`)
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("source", type=str, help="file of the authors, or what this command made of one")
    parser.add_argument("target", type=str, help="folder or file to write")
    parser.add_argument("--model", type=str | None, default=None, help="cin256-v2, lsun_beds256, lsun_churches256")
    parser.add_argument("--configuration", type=str | None, default=None, help="official YAML of another model")
    parser.add_argument("--weights", type=str, default="auto", help="of the U-Net: auto, ema or plain")
    parser.add_argument("--float", type=str | None, default=None, help="pipeline folder of a quantised file's model")
    parser.add_argument("--inputs", type=str | None, default=None, help="calibration records for its zero points")
    parser.add_argument("--weight-bits", type=int, default=4, help="of a quantised file, which does not tell them")
    parser.add_argument("--activation-bits", type=int, default=8, help="of a quantised file")
    parser.add_argument("--channel-wise-weights", action="store_true", help="a quantised file's ranges are per channel")
    parser.add_argument("--trust-pickle", action="store_true", help="read a pickle that can run code")


def run(arguments: Any) -> int:
    from pathlib import Path

    from paperkit.errors import UserError
    from ptq4dm.models import conversion
    from ptq4dm.models.pipelines import is_pipeline

    source, target = Path(arguments.source), Path(arguments.target)
    if arguments.weights not in ("auto", "ema", "plain"):
        raise UserError(f"--weights {arguments.weights}: it is one of auto, ema, plain")
    if source.is_dir():
        print(conversion.to_file(source, target) if is_pipeline(source) else _run_to_file(source, target))
    elif arguments.float is not None:
        print(_quantized_to_folder(arguments, source, target))
    elif ".safetensors" in (source.suffix, target.suffix):
        print(_records(arguments, source, target))
    else:
        model = conversion.described(arguments.model, arguments.configuration)
        print(conversion.to_folder(source, target, model, arguments.weights, arguments.trust_pickle))
    return 0


def _run_to_file(source: Any, target: Any) -> str:
    from ptq4dm.models.official_quantized import write_quantized
    from ptq4dm.training.finished import load_run

    unet: Any = load_run(source).diffusion.unet
    write_quantized(target, unet)
    return f"{target}: weights, alphas and activation steps; weight ranges and zero points have no place there"


def _quantized_to_folder(arguments: Any, source: Any, target: Any) -> str:
    from ptq4dm.deployment.packed_folder import save_packed
    from ptq4dm.deployment.packed_unet import pack
    from ptq4dm.method.calibration import Records
    from ptq4dm.method.quant_model import QuantConfig
    from ptq4dm.models.conversion import described, load_any
    from ptq4dm.models.official_quantized import read_inputs, read_quantized

    config = QuantConfig(
        arguments.weight_bits, arguments.activation_bits, channel_wise_weights=arguments.channel_wise_weights
    )
    records: Records | None = None
    if arguments.inputs is not None:
        ours = arguments.inputs.endswith(".safetensors")
        read = Records.load(arguments.inputs) if ours else read_inputs(arguments.inputs, arguments.trust_pickle)
        records = read.shuffled(len(read))
    model = described(arguments.model, arguments.configuration)
    unet = load_any(arguments.float, model, arguments.trust_pickle).unet
    read_quantized(source, unet, config, records, trust_pickle=arguments.trust_pickle)
    save_packed(pack(unet), target)
    return f"{target}: packed integers, W{config.weight_bits}A{config.activation_bits}"


def _records(arguments: Any, source: Any, target: Any) -> str:
    from ptq4dm.method.calibration import Records
    from ptq4dm.models.official_quantized import read_inputs, write_inputs

    if source.suffix == ".safetensors":
        write_inputs(target, Records.load(source))
        return f"{target}: calibration records as the authors' scripts read them"
    records = read_inputs(source, arguments.trust_pickle)
    records.save(target)
    return f"{target}: {len(records)} calibration records"
