"""Bit operations and bytes of a U-Net: nominal (the paper's convention) and exact.

MODEL is cin256-v2, lsun_beds256 or lsun_churches256, of which nothing is read, or a folder of a U-Net of diffusers, of
which only config.json matters. --schedule gives the mean over steps of a mixed schedule (schedule.json of a run).
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("model", type=str, help="cin256-v2, lsun_beds256, lsun_churches256, or folder of a U-Net")
    parser.add_argument("--weight-bits", type=int, default=4, help="2 to 8")
    parser.add_argument("--activation-bits", type=int, default=8, help="2 to 8")
    parser.add_argument("--channel-wise", action="store_true", help="ranges of weights for each output channel")
    parser.add_argument("--skip-bits", type=int | None, default=None, help="of layers that the authors leave float")
    parser.add_argument("--schedule", type=str | None, default=None, help="schedule.json: activation bits by step")


def _large(count: float) -> str:
    """In the unit that leaves digits before the point: 95.90 G, 1.24 M."""
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f}"


def run(arguments: Any) -> int:
    from pathlib import Path

    import torch

    from paperkit.results.report import table
    from ptq4dm.method.bit_schedule import BitSchedule
    from ptq4dm.method.bops import count_cost
    from ptq4dm.method.quant_model import QuantConfig
    from ptq4dm.models.latent_diffusion import unet_on_meta
    from ptq4dm.training.diffusion import Diffusion, load_diffusion
    from ptq4dm.training.settings import ModelConfig

    config = QuantConfig(
        arguments.weight_bits, arguments.activation_bits, arguments.channel_wise, skip_bits=arguments.skip_bits
    )
    if Path(arguments.model).exists():
        diffusion = load_diffusion(ModelConfig(path=arguments.model))
    else:
        unet = unet_on_meta(arguments.model)
        width = getattr(unet.config, "cross_attention_dim", None)
        contexts = None if width is None else torch.zeros(1, 1, width)
        diffusion = Diffusion(unet, {}, contexts)
    cost = count_cost(diffusion.unet, diffusion.example(), config)
    whole, exact_whole = cost.float_bops(products=False), cost.float_bops(products=True)
    rows = [
        ("bit operations, nominal", _large(cost.nominal()), f"{whole / cost.nominal():.2f}x fewer"),
        ("bit operations, exact", _large(cost.exact()), f"{exact_whole / cost.exact():.2f}x fewer"),
    ]
    if arguments.schedule is not None:
        schedule = BitSchedule.load(arguments.schedule)
        nominal, exact = cost.mean(schedule.activation_bits)
        rows += [
            ("  mean of the schedule, nominal", _large(nominal), f"{whole / nominal:.2f}x fewer"),
            ("  mean of the schedule, exact", _large(exact), f"{exact_whole / exact:.2f}x fewer"),
        ]
    for rest in (16, 32):
        size = cost.bytes(rest)
        share = f"{100 * size / cost.float_bytes():.1f} % of float32"
        rows.append((f"file, the rest in {rest} bits", f"{size / 1e6:.2f} MB", share))
    title = (
        f"{arguments.model}: W{config.weight_bits}A{config.activation_bits}, {_large(cost.parameters)} parameters; "
        f"multiply-adds: {_large(cost.layer_macs)} in layers, {_large(cost.quantised_macs)} of them quantised, "
        f"{_large(cost.products)} in attention products"
    )
    table(rows, ("cost of one call, one image", "value", "against float32"), title)
    return 0
