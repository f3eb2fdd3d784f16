"""Write a checkpoint with one bit per binary weight; `bivit eval --ckpt FILE` and `bivit predict --ckpt FILE` run it.

Everything that is no binary weight is stored as fp16 (or fp32); the logits of the file are compared with those of the
checkpoint on a picture of noise, and the difference is printed.
"""

from typing import Any


def add_arguments(parser: Any) -> None:
    parser.add_argument("ckpt", type=str, help="run folder, folder of save_pretrained, or file")
    parser.add_argument("--rest", choices=["fp16", "fp32"], default="fp16", help="precision of all but the bits")
    parser.add_argument("--arch", type=str | None, default=None, help="timm's name of a file's network")
    parser.add_argument("--method", type=str | None, default=None, help="how a file without scales is binarized")
    parser.add_argument("--trust-pickle", action="store_true", help="read a pickle that can run code")
    parser.add_argument("--output", type=str, default="runs/bivit/pack/packed.safetensors", help="file to write")


def run(arguments: Any) -> int:
    import json
    from pathlib import Path

    import torch

    from bivit.deployment.kernels import tier
    from bivit.deployment.packed_file import description_of, read_packed, write_packed
    from bivit.deployment.packed_model import pack, packing
    from bivit.models.classifier import binary_config
    from paperkit.errors import UserError
    from paperkit.files.atomic import write_atomic

    if Path(arguments.output).suffix != ".safetensors":
        raise UserError(f"--output {arguments.output}: the file is of safetensors; name it so")
    told = {"trust_pickle": arguments.trust_pickle, "arch": arguments.arch, "method": arguments.method}
    network, description = description_of(arguments.ckpt, **told)
    packed = pack(network)
    arch, options = description["arch"], description.get("options")
    write_packed(arguments.output, packed, arch, binary_config(description["binary"]), options, arguments.rest)
    cfg: Any = network.pretrained_cfg
    side = int((options or {}).get("img_size") or cfg["input_size"][-1])
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        simulated, exact, stored = network(image), packed(image), read_packed(arguments.output)(image)
    largest = float(simulated.abs().max()) or 1.0
    differences = {
        "packed": float((exact - simulated).abs().max()) / largest,
        arguments.rest: float((stored - simulated).abs().max()) / largest,
    }
    whole, bytes_on_disk = sum(4 * p.numel() for p in network.parameters()), Path(arguments.output).stat().st_size
    report = packing(packed)
    print(report)
    print(f"{bytes_on_disk:,} bytes; {whole:,} in float32: 1/{whole / bytes_on_disk:.1f}")
    print(f"largest difference of the logits, of their largest: {differences['packed']:.1e} on bits (tier {tier()}), "
          f"{differences[arguments.rest]:.1e} as stored with a rest of {arguments.rest}")  # fmt: skip
    content = {"file": str(arguments.output), "bytes": bytes_on_disk, "bytes_float32": whole, "zero_rules":
               report.zero_rules, "constant_rows": report.constant_rows, "logits_differ": differences}  # fmt: skip
    write_atomic(Path(arguments.output).with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    print(arguments.output)
    return 0
