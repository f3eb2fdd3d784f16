"""The engine `ldm`: its stages on tiny models, kills at any of them, two processes, evaluation."""

import json
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import made_checkpoints
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from made import PIXELS, TINY, merged, options_of, pixel_folder, ptq4dm, tiny_unet, write_yaml

from paperkit.data.seeding import seed_of
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder
from paperkit.files.weights import read_safetensors, save_weights
from paperkit.results.metrics import Metrics
from paperkit.testing.commands import at_call
from paperkit.testing.runs import check_same_runs
from ptq4dm.deployment.packed_folder import load_packed
from ptq4dm.deployment.quantised_run import open_quantised
from ptq4dm.method.calibration import Records, predict
from ptq4dm.method.noise_statistics import NoiseStatistics
from ptq4dm.method.quant_model import quantize, set_activation_ranges, set_quantized
from ptq4dm.models.compvis import read_compvis
from ptq4dm.models.ddim_scheduler import LDM_SCHEDULE
from ptq4dm.models.pipelines import ClassConditionalLDMPipeline
from ptq4dm.training import engine
from ptq4dm.training.collection import calls_of, collect
from ptq4dm.training.denoising import CALIBRATION, denoise, spread
from ptq4dm.training.diffusion import Diffusion, load_diffusion
from ptq4dm.training.processes import Processes
from ptq4dm.training.quantization import load_quantized, quant_config
from ptq4dm.training.settings import BitsConfig, CalibrationConfig, ModelConfig, SamplerConfig
from ptq4dm.training.statistics import schedule_of, statistics_file

MIXED = merged(TINY, {"quantization": {"candidates": [4, 8]}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a config, and a run `whole` that nothing disturbed, which draws by two bit widths."""
    folder = tmp_path_factory.mktemp("ldm")
    pixel_folder(folder / "model")
    write_yaml(folder / "tiny.yaml", merged(MIXED, {"model": {"path": "model"}}))
    ptq4dm.here("train", "--config", "tiny.yaml", "--name", "whole", cwd=folder)
    return folder


def run_of(folder: Path, name: str = "whole") -> Path:
    return folder / "runs" / "ptq4dm" / name


def test_a_run_leaves_its_parts(folder: Path) -> None:
    run = run_of(folder)
    assert (run / "finished").is_file() and len(Records.load(run / "calibration" / "records.safetensors")) == 24
    names = {path.name for path in (run / "model").iterdir()}
    assert names == {"weights.safetensors", "schedule.json"} | {
        f"{kind}_a{bits}.safetensors" for kind in ("activations", "statistics") for bits in (4, 8)
    }
    assert not list(run.rglob("part_*"))
    schedule = json.loads((run / "model" / "schedule.json").read_text())
    assert [row["timestep"] for row in schedule] == [751, 501, 251, 1]
    assert {row["activation_bits"] for row in schedule} <= {4, 8}


def test_calls_are_drawn_of_all_calls(tmp_path: Path) -> None:
    """Against all calls of the sampling, kept in memory and indexed afterwards."""
    diffusion = Diffusion(tiny_unet(conditional=True), dict(LDM_SCHEDULE))
    diffusion.contexts, diffusion.null = torch.randn(5, 1, 12), torch.randn(1, 12)
    sampler, config = SamplerConfig(4, 0.0, 2.0), CalibrationConfig(images=7, records=20, batch=3)
    found = collect(diffusion, sampler, config, 3, tmp_path / "calibration", Processes())
    every: dict[int, tuple[torch.Tensor, ...]] = {}
    for number, images in enumerate((range(3), range(3, 6), range(6, 7))):

        def watch(step: int, call: Records, _: torch.Tensor, images: range = images) -> None:
            assert call.context is not None
            for half in range(2):
                for i, image in enumerate(images):
                    at = half * len(images) + i
                    every[image * calls_of(sampler) + step * 2 + half] = call.x[at], call.t[at], call.context[at]

        chosen = spread(images, 7, diffusion.conditions)
        denoise(diffusion, sampler, chosen, seed_of(3, CALIBRATION, number), watch=watch)
    assert len(every) == 7 * 8
    order = torch.randperm(56, generator=torch.Generator().manual_seed(seed_of(3, CALIBRATION)))[:20]
    for row, place in enumerate(order.tolist()):
        x, t, context = every[place]
        assert found.context is not None
        assert found.x[row].equal(x) and found.t[row] == t and found.context[row].equal(context)


def test_the_saved_network_is_the_learned_one(folder: Path) -> None:
    bits = BitsConfig(candidates=[4, 8])
    diffusion = load_diffusion(ModelConfig(str(folder / "model")))
    records = Records.load(run_of(folder) / "calibration" / "records.safetensors")
    with torch.no_grad():
        exact = predict(diffusion.unet, records)
        quantize(diffusion.unet, quant_config(bits))
        ranges = load_quantized(run_of(folder) / "model", diffusion.unet, bits)
        coarse = predict(diffusion.unet, records)
        set_quantized(diffusion.unet, weights=False, activations=False)
        assert predict(diffusion.unet, records).equal(exact)
    assert sorted(ranges) == [4, 8]
    assert 0 < (coarse - exact).abs().mean() < 0.5 * exact.abs().mean()


def test_a_budget_bounds_the_mean_of_the_bits(folder: Path) -> None:
    diffusion, sampler = load_diffusion(ModelConfig(str(folder / "model"))), SamplerConfig(4, 1.0, 1.0)
    statistics = {bits: NoiseStatistics.load(statistics_file(run_of(folder) / "model", bits)) for bits in (4, 8)}
    for budget, fewest in ((4.0, 4.0), (6.0, 5.0), (8.0, 8.0)):
        bits = BitsConfig(candidates=[4, 8], mean_bits=budget)
        assert fewest <= schedule_of(statistics, diffusion, bits, sampler).mean_bits() <= budget
    assert schedule_of(statistics, diffusion, BitsConfig(candidates=[4, 8]), sampler).mean_bits() >= 4
    steps = schedule_of(statistics, diffusion, BitsConfig(candidates=[4, 8], monotone=True), sampler).activation_bits
    assert list(steps) == sorted(steps, reverse=True)


KILLS = {
    "while calls are collected": ("ptq4dm.training.collection:save_weights", 2),
    "between two units": ("ptq4dm.method.reconstruction:save_weights", 5),
    "while steps are learned": ("ptq4dm.method.reconstruction:save_weights", 15),
    "before the network is saved": ("ptq4dm.training.quantization:save_weights", 2),
    "while pairs are collected": ("ptq4dm.training.collection:save_weights", 5),
}


@pytest.mark.parametrize("where", KILLS)
def test_a_kill_changes_nothing(where: str, folder: Path) -> None:
    name = f"killed_{list(KILLS).index(where)}"
    patch = at_call(*KILLS[where])
    ptq4dm.child("train", "--config", "tiny.yaml", "--name", name, cwd=folder, patch=patch, code=-9)
    assert not (run_of(folder, name) / "finished").exists()
    ptq4dm.here("train", "--resume", name, cwd=folder)
    check_same_runs(run_of(folder), run_of(folder, name))


def test_a_signal_ends_in_a_line_and_changes_nothing(folder: Path) -> None:
    patch = at_call("ptq4dm.method.reconstruction:save_weights", 8, signal.SIGTERM)
    words = ("train", "--config", "tiny.yaml", "--name", "told")
    ended = ptq4dm.child(*words, cwd=folder, patch=patch, code=143)
    assert "Traceback" not in ended.err and len(ended.err.splitlines()) == 1
    ptq4dm.here("train", "--resume", "told", cwd=folder)
    check_same_runs(run_of(folder), run_of(folder, "told"))


def test_a_cache_that_does_not_fit_is_refused_before_sampling(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptq4dm.method.unit_cache._free_memory", lambda: 10_000)
    line = ptq4dm.refused("train", "--config", "tiny.yaml", "--name", "large", cwd=folder)
    assert "reconstruction keeps up to" in line and not (run_of(folder, "large") / "calibration").exists()


def test_two_processes_share_the_sampling(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ("train", "--config", "tiny.yaml", "--name", "two")
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [ptq4dm.start(*words, cwd=folder, environment={**common, "RANK": str(rank)}) for rank in range(2)]
    for child in started:
        child.wait().with_code(0)
    check_same_runs(run_of(folder), run_of(folder, "two"))


def test_a_process_that_comes_late_waits_as_often(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the network is learned is seen before anyone writes it: else the processes wait for different things."""
    weights, hidden = run_of(folder) / "model" / "weights.safetensors", folder / "hidden"
    weights.rename(hidden)
    waits: list[bool] = []

    class Late(Processes):
        def wait(self) -> None:  # meanwhile the first process learns
            waits.append(weights.is_file())
            if hidden.is_file():
                hidden.rename(weights)

    monkeypatch.chdir(folder)
    options = options_of(engine, folder / "tiny.yaml")
    engine._train(RunFolder.open(run_of(folder)), options, Late(rank=1, count=2))
    assert waits == [False, True]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sampler": {"steps": 3}}, "sampler.steps 3 does not divide the 1000 of training; 2 does"),
        ({"sampler": {"guidance": float("inf")}}, "sampler.guidance inf is no number"),
        ({"reconstruction": {"weight_lr": -1.0}}, "reconstruction.weight_lr -1.0 is not above 0"),
    ],
    ids=["steps", "guidance", "learning rate"],
)
def test_settings_that_cannot_be(changed: dict[str, Any], message: str, folder: Path, tmp_path: Path) -> None:
    content = merged(TINY, {"model": {"path": str(folder / "model")}}, changed)
    with pytest.raises(UserError, match=message):
        engine.check(options_of(engine, write_yaml(tmp_path / "c.yaml", content)), None)


def test_evaluation_compares_from_the_same_noise(folder: Path) -> None:
    ptq4dm.here("eval", "--ckpt", run_of(folder), "--output", "out", cwd=folder)
    metrics = Metrics.read(folder / "out" / "metrics.json")
    for arm in ("quantised", "corrected"):
        assert metrics.row(arm, "distance to the float samples").mean > 0
        assert metrics.row(arm, "noise error").mean > 0
    assert (folder / "out" / "figures" / "samples.png").stat().st_size > 1000
    first = (folder / "out" / "metrics.json").read_bytes()
    ptq4dm.here("eval", "--ckpt", run_of(folder), "--output", "again", cwd=folder)
    again = Metrics.read(folder / "again" / "metrics.json")
    assert [(r.arm, r.values) for r in again.rows] == [(r.arm, r.values) for r in metrics.rows] and first


def test_a_conditional_model_with_guidance(tmp_path: Path) -> None:
    """A U-Net with contexts of a file, as a text-to-image one has them."""
    tiny_unet(conditional=True).save_pretrained(tmp_path / "unet")
    save_weights(tmp_path / "contexts.safetensors", {"contexts": torch.randn(4, 2, 12), "null": torch.randn(2, 12)})
    made = {"model": {"path": str(tmp_path), "contexts": str(tmp_path / "contexts.safetensors")},
            "sampler": {"guidance": 2.0, "eta": 0.0}}  # fmt: skip
    write_yaml(tmp_path / "tiny.yaml", merged(TINY, made))
    ptq4dm.here("train", "--config", "tiny.yaml", "--name", "one", cwd=tmp_path)
    tensors, _ = read_safetensors(run_of(tmp_path, "one") / "calibration" / "records.safetensors")
    assert tensors["context"].shape == (24, 2, 12)
    ptq4dm.here("eval", "--ckpt", run_of(tmp_path, "one"), cwd=tmp_path)


@pytest.mark.parametrize("name", made_checkpoints.TINY)
def test_compvis_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the three kinds, tiny: sampled from, quantised, decoded."""
    monkeypatch.setattr("ptq4dm.training.diffusion.model_named", made_checkpoints.TINY.__getitem__)
    file = made_checkpoints.made_file(tmp_path / "model.ckpt", name)
    diffusion = load_diffusion(ModelConfig(str(file), name))
    described = made_checkpoints.TINY[name]
    assert diffusion.conditions == (described.classes or 1) - 1
    assert diffusion.schedule["beta_end"] == described.linear_end
    guidance = 2.0 if diffusion.conditions else 1.0
    diffusion.check_guidance(guidance)
    config = CalibrationConfig(images=3, records=8, batch=2)
    quantize(diffusion.unet)
    records = collect(diffusion, SamplerConfig(4, 1.0, guidance), config, 0, tmp_path, Processes())
    assert records.x.shape == (8, *diffusion.shape) and records.x.isfinite().all()
    assert (records.context is not None) == bool(diffusion.conditions)
    assert diffusion.decode is not None and diffusion.decode(records.x).shape == (8, 3, 16, 16)


def test_a_class_conditional_pipeline(tmp_path: Path) -> None:
    """A folder of this package's own pipeline: classes and decoder come with it."""
    networks, model = read_compvis(
        made_checkpoints.made_file(tmp_path / "model.ckpt", "cin"), made_checkpoints.TINY["cin"]
    )
    assert networks.embedding is not None
    pipeline = ClassConditionalLDMPipeline(networks.unet, networks.first_stage, networks.embedding, model.scheduler())
    pipeline.save_pretrained(tmp_path / "folder")
    folder, table = load_diffusion(ModelConfig(str(tmp_path / "folder"))), networks.embedding.embedding.weight
    assert folder.contexts is not None and folder.contexts[:, 0].equal(table[:4])
    assert folder.null is not None and folder.null[0].equal(table[4])
    assert folder.decode is not None and folder.schedule["beta_schedule"] == "scaled_linear"


def test_a_pipeline_of_another_scheduler(folder: Path, tmp_path: Path) -> None:
    """A DDPM as diffusers saves it, from its noise schedule to the corrected samples."""
    schedule = {key: LDM_SCHEDULE[key] for key in ("beta_start", "beta_end", "beta_schedule")}
    DDPMPipeline(tiny_unet(), DDPMScheduler(**schedule, variance_type="fixed_large")).save_pretrained(tmp_path / "ddpm")
    short = ("--reconstruction.weight_iterations", "0", "--reconstruction.step_iterations", "0")
    model = ("--model.path", tmp_path / "ddpm", "--name", "ddpm")
    ptq4dm.here("train", "--config", "tiny.yaml", *model, *short, cwd=folder)
    ptq4dm.here("eval", "--ckpt", run_of(folder, "ddpm"), cwd=folder)


def test_a_network_that_embeds_classes(tmp_path: Path) -> None:
    """`num_class_embeds` of diffusers: labels instead of contexts, the last one unconditional."""
    UNet2DModel(**PIXELS, num_class_embeds=4).save_pretrained(tmp_path / "unet")
    diffusion = load_diffusion(ModelConfig(str(tmp_path)))
    config = CalibrationConfig(images=4, records=12, batch=2)
    records = collect(diffusion, SamplerConfig(2, 0.0, 2.0), config, 0, tmp_path / "calibration", Processes())
    assert records.labels is not None and set(records.labels.tolist()) == {0, 1, 2, 3}


def test_settings_stay_those_of_the_run(folder: Path) -> None:
    shutil.copytree(run_of(folder), run_of(folder, "copy"))
    (run_of(folder, "copy") / "finished").unlink()
    line = ptq4dm.refused("train", "--resume", "copy", "--sampler.steps", "5", cwd=folder)
    assert "a run keeps its settings: sampler" in line


def test_options_are_documented() -> None:
    options = options_of(engine)
    assert set(vars(options)) >= set(engine.GROUPS)


def test_run_is_packed_with_its_schedule(folder: Path) -> None:
    """Each step runs at its own width, as in the run, up to codes at a tie."""
    ptq4dm.here("pack", "--ckpt", "runs/ptq4dm/whole", "--rest", "fp32", "--output", "packed", cwd=folder)
    run, packed = open_quantised(run_of(folder), model=str(folder / "model")), load_packed(folder / "packed")
    assert run.schedule is not None and run.ranges is not None and packed.schedule == dict(run.schedule)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for step, bits in run.schedule.items():
        set_activation_ranges(run.unet, run.ranges[bits])
        with torch.no_grad():
            expected, found = run.unet(x, step).sample, packed(x, step).sample
        assert (found - expected).square().mean() < 0.05**2 * expected.square().mean(), (step, bits)
