"""What the tests share: the command, settings of an embedded experiment of seconds, and what config files give."""

from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from paperkit.command.cli import make_parser
from paperkit.testing.commands import Command

focusformer = Command(
    "focusformer", "focusformer.cli:main", preload=("focusformer.experiment.run", "focusformer.training.images")
)
TINY: dict[str, Any] = dict(seeds=1, steps=60, evaluations=8, alone=3, alone_steps=10, processes=1)
"""An embedded experiment of seconds; its accuracies mean nothing."""

CONFIGS = Path(__file__).parents[1] / "configs"
CPU = {"precision": "32-true", "accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "log_every_n_steps": 1}


def options_of(engine: ModuleType, *configs: Path) -> Any:
    """What config files give to an engine."""
    parser = make_parser("focusformer train")
    parser.add_argument("--config", action="config")
    parser.add_argument("--engine", type=str)
    engine.add_arguments(parser)
    return parser.instantiate_classes(parser.parse_args([word for path in configs for word in ("--config", str(path))]))


def merged(*configs: Path) -> dict[str, Any]:
    """The content of config files, later over earlier, one level deep as the command line does it."""
    out: dict[str, Any] = {}
    for path in configs:
        for key, value in yaml.safe_load(path.read_text()).items():
            out[key] = {**out.get(key, {}), **value} if isinstance(value, dict) else value
    return out


def write_yaml(path: Path, content: dict[str, Any]) -> Path:
    """Writes plain values."""
    path.write_text(yaml.safe_dump(content))
    return path
