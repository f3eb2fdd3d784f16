"""What the tests of several rooms share."""

from pathlib import Path

import pytest
import torch
from made import ANCHORS, randomise

from snnet.models.anchors import SNNet


@pytest.fixture
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The present folder is empty, and tables have room."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of `save_pretrained`, one per family; a test that changes one works on a copy."""
    folder = tmp_path_factory.mktemp("networks")
    for name in ("vit", "levit"):
        torch.manual_seed(1)
        network = SNNet(ANCHORS[name], num_classes=3)
        randomise(network)
        network.save_pretrained(folder / name)
    return folder
