"""A config with a class to build in a value's place: nothing of it may be built."""

from pathlib import Path
from typing import Any

import yaml

from paperkit.files.runs import RunFolder
from paperkit.testing.commands import Command

EVIL = {"class_path": "os.mkdir", "init_args": {"path": "ran"}}
"""What a parser of classes would build."""


def check_a_config_runs_nothing(command: Command, config: dict[str, Any], place: str, folder: Path) -> None:
    """Neither from a file that `train` is given, nor from the folder of somebody else's run.

    Args:
        command: of the paper. config: the rest of the config, with its engine.
        place: dotted, of the value. folder: empty.
    """
    *above, last = place.split(".")
    inner = config
    for name in above:
        inner = inner.setdefault(name, {})
    inner[last] = EVIL
    named = folder / "evil.yaml"
    named.write_text(yaml.safe_dump(config))
    assert command.here("train", "--config", named, cwd=folder, code=None).code in (1, 2)
    run = RunFolder.create(folder / "runs", command.paper, "evil")
    run.write_config(config)
    for words in (["train", "--resume", "evil"], ["eval", "--ckpt", run.path]):
        ended = command.here(*words, cwd=folder, code=None)
        assert ended.code in (1, 2) and ended.line
    assert not (folder / "ran").exists()
