"""Write one configuration as a file of its own: torch (safetensors and a torch.export program) or ONNX."""

from typing import Any


def add_arguments(parser: Any) -> None:
    from snnet.commands import network_options

    network_options.add_arguments(parser)
    parser.add_argument("--config_id", "--config-id", type=int, required=True, help="the configuration")
    parser.add_argument("--format", choices=["torch", "onnx"], default="torch", help="what to write")
    parser.add_argument("--output", type=str | None, default=None, help="folder (default: stitch-<id>)")


def run(arguments: Any) -> int:
    from pathlib import Path

    from paperkit.errors import UserError
    from snnet.deployment.export import export_onnx, export_torch
    from snnet.deployment.extraction import SubNetwork
    from snnet.deployment.source import open_source

    source = open_source(arguments)
    model = SubNetwork(source.network, arguments.config_id).eval()
    folder = Path(arguments.output or f"stitch-{arguments.config_id}")
    if arguments.format == "torch":
        path = folder / "model.pt2"
        model.save(folder, source.description)
        error = export_torch(model, source.input_size, path)
    else:
        path = folder / "model.onnx"
        error = export_onnx(model, source.input_size, path)
    if not error < 1e-3:
        raise UserError(f"the exported file differs from the network by {error:.3g}; do not use {path}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = f"{parameters / 1e6:.3g} M parameters, {path.stat().st_size / 1e6:.1f} MB"
    print(f"{path}: {size}, largest difference {error:.1e}")
    return 0
