"""Every recipe: the published numbers, and one pass of the whole pipeline on a tiny model."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from made import CONFIGS, TINY, merged, options_of, pixel_folder, write_yaml

from paperkit.command.engines import settings_of
from paperkit.files.runs import RunFolder
from ptq4dm.experiment import engine as experiment
from ptq4dm.experiment.settings import ExperimentConfig
from ptq4dm.models.latent_diffusion import model_named
from ptq4dm.training import engine
from ptq4dm.training.quantization import quant_config, widths

BASES = {
    # steps, eta, guidance; the released model
    "imagenet/steps20": (20, 0.0, 3.0, "cin256-v2"),
    "imagenet/steps250": (250, 1.0, 1.5, "cin256-v2"),
    "lsun/bedrooms": (200, 1.0, 1.0, "lsun_beds256"),
    "lsun/churches": (200, 0.0, 1.0, "lsun_churches256"),
    "folder": (50, 0.0, 1.0, None),
}
EMBEDDED = "digits/five_networks"
OVERLAYS = sorted([*(CONFIGS / "bits").glob("*.yaml"), *(CONFIGS / "variants").glob("*.yaml")])


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def test_every_file_is_known_and_opens_with_its_command() -> None:
    for path in CONFIGS.rglob("*.yaml"):
        head = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
        assert "# Command:  make ptq4dm-train CONFIG=ptq4dm/configs/" in head, path
        assert "# Paper:    " in head and "# Measured here: " in head, path
        assert f"ptq4dm/configs/{path.relative_to(CONFIGS)}" in head, path
        assert read(path)["engine"] == ("digits" if path.parent.name == "digits" else "ldm")
    known = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml")}
    assert known == {*BASES, EMBEDDED, *(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in OVERLAYS)}


@pytest.mark.parametrize("name", BASES)
def test_base_as_published(name: str) -> None:
    made = options_of(engine, CONFIGS / f"{name}.yaml")
    steps, eta, guidance, network = BASES[name]
    sampler, calibration, learning = made.sampler, made.calibration, made.reconstruction
    assert (sampler.steps, sampler.eta, sampler.guidance, made.model.network) == (steps, eta, guidance, network)
    if network is None:
        return
    model_named(network)
    assert (calibration.records, calibration.range_records) == (1024, 32)
    assert (learning.weight_iterations, learning.weight_batch, learning.weight_lr) == (10000, 8, 1e-3)
    assert (learning.step_iterations, learning.step_batch, learning.step_lr) == (5000, 16, 4e-4)
    assert learning.rounding_weight == 0.01
    if name == "imagenet/steps20":
        assert (calibration.images, calibration.pairs) == (4000, 1024)
        assert calibration.images * steps * 2 == 160_000  # records of the authors' file


def test_the_defaults_are_the_authors_script() -> None:
    plain, script = options_of(engine), options_of(engine, CONFIGS / "imagenet" / "steps20.yaml")
    for group in ("sampler", "quantization", "calibration", "reconstruction"):
        assert getattr(plain, group) == getattr(script, group), group


def test_the_larger_table() -> None:
    """As many networks and images as the method's description recommends; all else as by default."""
    made = settings_of(options_of(experiment, CONFIGS / f"{EMBEDDED}.yaml"), ExperimentConfig)
    assert made == ExperimentConfig(seeds=5, draws=1, images=500)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_overlay_over_a_tiny_model(overlay: Path, tmp_path: Path) -> None:
    """The file's own options over a run of seconds, through every stage."""
    content = read(overlay)
    for key in content.get("reconstruction", {}):
        assert content["reconstruction"][key] == 0  # the only ones that a tiny run takes as they are
    short = {"reconstruction": {"weight_iterations": 1, "step_iterations": 0}, "calibration": {"images": 6, "pairs": 3}}
    made = merged(TINY, short, content, {"model": {"path": str(pixel_folder(tmp_path / "model"))}})
    options = options_of(engine, write_yaml(tmp_path / "tiny.yaml", made))
    engine.check(options, None)
    run = RunFolder.create(tmp_path / "runs", "ptq4dm", "one")
    engine.train(run, options, resuming=False)
    config = quant_config(options.quantization)
    for key, value in content.get("quantization", {}).items():
        if key not in ("candidates", "mean_bits", "monotone"):
            assert getattr(config, key) == value
    for width in widths(options.quantization):
        assert (run.path / "model" / f"activations_a{width}.safetensors").is_file()
        assert (run.path / "model" / f"statistics_a{width}.safetensors").is_file()
    assert (run.path / "metrics.json").is_file()
