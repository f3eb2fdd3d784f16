"""`litv2 train`: the embedded experiment, or the engine that the config file asks for.

Without data: cost of attention layers, two markers, frequency split on digits (needs nothing but this package).
A .yaml with a `data` section (or --data.* options): a classifier through Lightning; its options: --help-images.
A .yaml with a `detection` section (or --detection.* options): RetinaNet or Mask R-CNN; its options: --help-detection.
A .py: a segmentation network through mmengine's Runner; its options: --help-segmentation.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paperkit.command.cli import make_parser
from paperkit.errors import UserError

IMAGES = ("--data", "--network", "--recipe", "--mixing", "--savings", "--ema", "--trainer")
ENGINES = {"images": "train_images", "detection": "train_detection", "segmentation": "train_segmentation"}


def main(argv: Sequence[str], prog: str) -> int:
    """Parse by what is asked for; an engine's parser imports its library, the embedded experiment's nothing heavy."""
    if argv and argv[0].endswith((".yaml", ".yml")):
        argv = ["--config", *argv]
    engine = engine_of(argv)
    if engine is not None:
        import importlib

        module = importlib.import_module(f"litv2.commands.{ENGINES[engine]}")
        return module.main(["--help" if word == f"--help-{engine}" else word for word in argv], prog)
    from litv2.experiment import engine as embedded

    parser = make_parser(prog, __doc__)
    embedded.add_arguments(parser)
    return embedded.run(parser.parse_args(list(argv)))


def engine_of(argv: Sequence[str]) -> str | None:
    """The engine that options or a config file belong to; None is the embedded experiment."""
    for word in argv:
        if word.startswith("--help-") and word[7:] in ENGINES:
            return word[7:]
    found = [path for path in (value_of(argv, "--config"), *argv[:1]) if path and path.endswith(".py")]
    if found:
        return "segmentation"
    heads = {word.split("=")[0].split(".")[0] for word in argv}
    if "--detection" in heads:
        return "detection"
    if heads & set(IMAGES):
        return "images" if "detection" not in sections(value_of(argv, "--config")) else "detection"
    keys = sections(value_of(argv, "--config"))
    resume = value_of(argv, "--resume")
    if resume:
        for folder in (Path(resume), Path(value_of(argv, "--root") or "runs") / "litv2" / resume):
            if (folder / "segmentation.py").is_file():
                return "segmentation"
            if (folder / "config.yaml").is_file():
                keys |= sections(str(folder / "config.yaml"))
                break
    elif "--resume" in argv:
        from paperkit.files.runs import RunFolder

        newest = RunFolder.newest(value_of(argv, "--root") or "runs", "litv2", finished=False)
        if newest is not None:
            if (newest.path / "segmentation.py").is_file():
                return "segmentation"
            keys |= sections(str(newest.path / "config.yaml"))
    return "detection" if "detection" in keys else "images" if "data" in keys else None


def value_of(argv: Sequence[str], option: str) -> str | None:
    """The word after an option, or after its equals sign; None if it is not there or has no value."""
    for i, word in enumerate(argv):
        if word == option and i + 1 < len(argv) and not argv[i + 1].startswith("--"):
            return argv[i + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def sections(path: str | None) -> set[str]:
    """Top-level keys of a YAML file; none without a file."""
    if path is None:
        return set()
    import yaml

    try:
        content: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a config: it has no options at its top level")
    return set(content)
