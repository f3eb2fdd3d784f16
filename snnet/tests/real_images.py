"""A tiny recipe on a made folder, and the two ways to give the command: a process of its own, or this one."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from paperkit.command.cli import main
from snnet.cli import VERBS

CLASSES = ("ant", "bee", "cow")


def vit(width: int) -> dict[str, Any]:
    """A plain ViT of 16 tokens and three blocks."""
    options = {"img_size": 32, "patch_size": 8, "embed_dim": width, "depth": 3, "num_heads": 2}
    return {"name": "vit_tiny_patch16_224", **options}


def write_recipe(path: Path, images: Path) -> Path:
    """Two anchors, nine configurations; mixing and drop path, so that a step draws random numbers of its own."""
    content = {
        "network": {"anchors": [vit(16), vit(32)], "weights": None, "init_images": 20, "drop_path_rate": 0.1},
        "training": {"mixup": 0.8, "cutmix": 1.0},
        "optim": {"lr": 1e-3, "warmup_epochs": 1},
        "data": {"root": str(images), "num_classes": 3, "batch_size": 4, "num_workers": 0, "input_size": 32},
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def command(*words: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The console script in a process of its own."""
    return launch([str(Path(sys.executable).parent / "snnet"), *map(str, words)], cwd, code)


def launch(words: Sequence[str], cwd: Path, code: int) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PAPERKIT_")}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def killed(patch: str, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command with a few lines run before it, which kill -9 its process at an exact point; checks that they did."""
    arguments = ["snnet", *map(str, words)]
    script = f"import os, signal, sys\n{patch}\nfrom snnet.cli import main\nsys.argv = {arguments!r}\nmain()\n"
    return launch([sys.executable, "-c", script], cwd, code=-9)


def here(*words: str | Path) -> int:
    """The same verbs in this process (no import to pay again); the exit code."""
    return main("snnet", "SN-Net", VERBS, [str(word) for word in words])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said of an error: one line on stderr."""
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error
