"""Write a quantised U-Net as a folder of real integers, which a new process loads and samples from.

--ckpt is a run of `ptq4dm train`: of the engine `ldm` with its bit schedule, or an embedded experiment (--seed and
--width choose among its networks).
"""

from typing import Any

from ptq4dm.commands.run_options import add_run_options


def add_arguments(parser: Any) -> None:
    add_run_options(parser)
    parser.add_argument("--rest", type=str, default="fp16", help="precision of what is not quantised: fp16 or fp32")
    parser.add_argument("--output", type=str, default="runs/ptq4dm/pack", help="folder to write")


def run(arguments: Any) -> int:
    from pathlib import Path

    from ptq4dm.deployment.packed_folder import file_sizes, load_packed, save_packed
    from ptq4dm.deployment.packed_unet import pack
    from ptq4dm.deployment.quantised_run import open_quantised

    source = open_quantised(Path(arguments.ckpt), arguments.seed, arguments.width, arguments.model)
    packed = pack(source.unet, source.ranges, source.schedule)
    save_packed(packed, arguments.output, arguments.rest)
    sizes = file_sizes(packed)
    share = sizes[arguments.rest] / sizes["float32"]
    print(f"{arguments.output}: {len(packed.packed_layers())} layers of integers, {sizes[arguments.rest]:,} bytes, "
          f"{share:.1%} of float32")  # fmt: skip
    print(f"engine here: {load_packed(arguments.output).engine()}")
    return 0
