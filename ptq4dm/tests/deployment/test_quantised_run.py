"""Commands `pack` and `export` on a run of the embedded experiment; test_ldm.py has those of the engine `ldm`."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from made import ptq4dm, write_yaml

from ptq4dm.deployment.packed_folder import load_packed
from ptq4dm.deployment.quantised_run import open_quantised
from ptq4dm.experiment.calibrated import calibrate
from ptq4dm.experiment.network import train_network
from ptq4dm.experiment.run import seed_folder
from ptq4dm.experiment.settings import ExperimentConfig


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pack` reads of a run, made without the rest of it."""
    config = ExperimentConfig(seeds=1, steps=2, batch_size=8, pairs=2, records=8)
    folder = tmp_path_factory.mktemp("digits")
    run = folder / "runs" / "ptq4dm" / "run"
    seed = seed_folder(run, config.first_seed)
    seed.mkdir(parents=True)
    (run / "started").touch()
    write_yaml(run / "config.yaml", {"engine": "digits", **asdict(config)})
    train_network(config.first_seed, seed, config, lambda steps: None)
    calibrate(config.first_seed, seed, config)
    return folder


def test_embedded_run_is_packed(digits: Path) -> None:
    """The networks agree up to codes at a tie; no seed means the first."""
    shown = ptq4dm.here("pack", "--ckpt", "runs/ptq4dm/run", "--width", "w8a8", "--rest", "fp32", cwd=digits).out
    assert "layers of integers" in shown and "% of float32" in shown and "engine here: " in shown
    simulated = open_quantised(digits / "runs" / "ptq4dm" / "run", 1, "w8a8").unet
    x, t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 301, 901])
    with torch.no_grad():
        expected, found = (net(x, t).sample for net in (simulated, load_packed(digits / "runs" / "ptq4dm" / "pack")))
    assert (found - expected).square().mean() < 0.02**2 * expected.square().mean()


def test_embedded_run_is_exported(digits: Path) -> None:
    shown = ptq4dm.here("export", "--ckpt", "runs/ptq4dm/run", cwd=digits).out
    assert "differs from PyTorch's by" in shown and (digits / "runs/ptq4dm/export/unet.pt2").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--seed", "7"), "has no seed 7; it has 1"), (("--width", "w2a2"), "width w2a2 is none of"),
     (("--rest", "int8"), "rest 'int8' does not exist")],
    ids=str,
)  # fmt: skip
def test_what_a_run_does_not_have(digits: Path, words: tuple[str, str], message: str) -> None:
    assert message in ptq4dm.refused("pack", "--ckpt", "runs/ptq4dm/run", *words, cwd=digits)
