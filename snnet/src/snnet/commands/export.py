"""Write one configuration as a file of its own: torch (safetensors and a torch.export program) or ONNX."""

from typing import Any


def add_arguments(parser: Any) -> None:
    from snnet.commands import network_options

    network_options.add_arguments(parser)
    parser.add_argument("--config_id", "--config-id", type=int, required=True, help="the configuration")
    parser.add_argument("--to", choices=["torch", "onnx"], default="torch", help="what to write")
    parser.add_argument("--output", type=str | None, default=None, help="folder (default: runs/snnet/export/<id>)")


def run(arguments: Any) -> int:
    from pathlib import Path

    from snnet.deployment.export import export
    from snnet.deployment.source import open_source

    folder = Path(arguments.output or Path(arguments.root) / "snnet" / "export" / str(arguments.config_id))
    path, model, error = export(open_source(arguments), arguments.config_id, arguments.to, folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = f"{parameters / 1e6:.3g} M parameters, {path.stat().st_size / 1e6:.1f} MB"
    print(f"{path}: {size}, largest difference {error:.1e}")
    return 0
