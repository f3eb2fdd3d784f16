"""Parameters, multiply-accumulates and speed of a network.

NETWORK is a backbone's name (stpt, stpt_gggg, i3d, ...), on which a detector is put, or a run, a folder or a file of
weights. Multiply-accumulates (MACs) are counted with attention's products, by part and by kind of layer; papers of this
field print the same figure as GFLOPs. With --seconds the network also runs on this machine.
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("network", nargs="?", type=str, default="stpt", help="name, run, folder or file")
    parser.add_argument("--frames", type=int | None, default=None, help="frames of a clip (default: the network's)")
    parser.add_argument(
        "--size", nargs=2, type=int | None, default=None, help="height and width of a named backbone's clip (96 96)"
    )
    parser.add_argument("--backbone-only", action="store_true", help="without the detector")
    parser.add_argument("--seconds", type=float, default=0.0, help="run forward passes for about so long; 0: none")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")


def run(arguments: Any) -> int:
    from pathlib import Path

    import torch
    from torch.utils.benchmark import Timer

    from paperkit.command.engines import device
    from paperkit.errors import UserError
    from paperkit.results.report import table
    from stpt.method.macs import KINDS, count_macs
    from stpt.models.conversion import load_network
    from stpt.models.networks import BACKBONES
    from stpt.models.stpt import STPT

    runs, on = arguments.seconds > 0, device(arguments.device)
    if arguments.network in BACKBONES:
        detector = {} if arguments.frames is None else {"frames": arguments.frames}
        with torch.device(on if runs else "meta"):
            network = STPT(arguments.network, detector, arguments.size or [96, 96])
    elif Path(arguments.network).exists():
        network = load_network(arguments.network, on)
        if arguments.size not in (None, own := network.settings["size"]):
            raise UserError(f"--size {arguments.size}: {arguments.network} takes clips of {own[0]} x {own[1]}")
    else:
        raise UserError(f"{arguments.network} is no run, folder or file, and no backbone: {', '.join(BACKBONES)}")
    height, width = network.settings["size"]
    frames = network.settings["detector"].get("frames", 256) if arguments.frames is None else arguments.frames
    if frames < 1:
        raise UserError(f"--frames {frames}: give 1 or more")
    shape = (1, network.settings["backbone"].get("in_channels", 3), frames, height, width)
    measured = network.backbone if arguments.backbone_only else network
    macs = count_macs(measured, shape)
    kinds = list(dict.fromkeys(KINDS.values()))
    parts = {f"stage {i + 1}": stage for i, stage in enumerate(macs.stages)}
    parts |= {"detector": macs.parts["coarse_pyramid_detection"]} if not arguments.backbone_only else {}
    parts |= {"all": macs.kinds}
    rows = []
    for name, part in parts.items():
        numbers = [*(part.get(kind, 0) for kind in kinds), sum(part.values())]
        rows.append((name, *(f"{number / 1e9:.2f}" for number in numbers)))
    title = f"{arguments.network}, {frames}x{height}x{width}: {macs.params / 1e6:.1f} M parameters; billions of MACs"
    table(rows, ("part", *kinds, "all"), title)
    if runs:
        clip, threads = torch.zeros(shape, device=on), torch.get_num_threads()
        timer = Timer("network(clip)", globals={"network": measured.eval(), "clip": clip}, num_threads=threads)
        with torch.inference_mode():
            found = timer.blocked_autorange(min_run_time=arguments.seconds)
        speed = f"{found.median:.3f} s a clip, {frames / found.median:.0f} frames a second"
        print(f"{speed}: median of {len(found.times)} runs on {on}, {threads} threads, float32")
    return 0
