"""A config, or somebody else's run folder, is data: nothing that it names is built or run, in any engine."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from made import spt

from paperkit.files.runs import RunFolder
from spt.cli import ENGINES

EVIL = {"class_path": "os.mkdir", "init_args": {"path": "ran"}}
GROUPS = ["backbone.sizes", "backbone.sizes.depth", "backbone.file", "method.selection", "recipe", "trainer.devices"]
PLACES = {  # engine -> the options that take more than a number or a name
    "digits": ["tasks", "arms", "seeds"],
    "lists": [*GROUPS, "data", "data.domains"],
    "segmentation": [*GROUPS, "data.scales", "data"],
    "sweep": [*GROUPS, "tasks", "budgets"],
}


def altered(config: dict[str, Any], place: str) -> dict[str, Any]:
    """The config with a class to build at a dotted place."""
    *above, last = place.split(".")
    inner = config
    for name in above:
        inner = inner.setdefault(name, {})
    inner[last] = EVIL
    return config


@pytest.mark.parametrize(("engine", "place"), [(name, place) for name in ENGINES for place in PLACES[name]])
def test_a_config_runs_nothing(engine: str, place: str, tmp_path: Path) -> None:
    """Neither the file that is named nor the folder of somebody else's run."""
    config = altered({"engine": engine}, place)
    named = tmp_path / "evil.yaml"
    named.write_text(yaml.safe_dump(config))
    ended = spt.here("train", "--config", named, cwd=tmp_path, code=None)
    assert ended.code in (1, 2) and ended.line
    run = RunFolder.create(tmp_path / "runs", "spt", "evil")
    run.write_config(config)
    for words in (["train", "--resume", "evil"], ["eval", "--ckpt", run.path], ["figures", run.path]):
        ended = spt.here(*words, cwd=tmp_path, code=None)
        assert ended.code in (1, 2) and ended.line
    assert not (tmp_path / "ran").exists()


def test_a_config_of_aliases_is_bounded(tmp_path: Path) -> None:
    """Nine levels of nine aliases each would be 400 million values."""
    lines = ["engine: digits", "a: &a [x, x, x, x, x, x, x, x, x]"]
    for above, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{above}'] * 9)}]")
    (tmp_path / "laughs.yaml").write_text("\n".join(lines))
    assert "laughs.yaml" in spt.refused("train", "--config", "laughs.yaml", cwd=tmp_path)
