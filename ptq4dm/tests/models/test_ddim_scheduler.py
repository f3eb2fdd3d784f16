"""The corrected schedulers: their parents when off, the formulas when on, in stock pipelines, on foreign networks."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from made import LDM, tiny_unet
from torch import Tensor

from paperkit.errors import UserError
from ptq4dm import NoiseStatistics, PTQDScheduler
from ptq4dm.method.noise_statistics import StatisticsAccumulator
from ptq4dm.method.trajectories import collect_pairs
from ptq4dm.models.ode_schedulers import CorrectedDPMSolver, CorrectedEuler
from ptq4dm.models.official_statistics import read_official, write_official


def statistics(steps: int = 5, slope: float = 0.05, **identity: Any) -> NoiseStatistics:
    sums, random = StatisticsAccumulator(), torch.Generator().manual_seed(0)
    for t in range(1, 1001, 1000 // steps):
        eps = torch.randn(8, 3, 8, 8, generator=random)
        sums.add(t, eps, eps * (1 + slope) + 0.1 + 0.05 * torch.randn(8, 3, 8, 8, generator=random))
    return sums.finish(identity)


def ready(steps: int = 5, given: NoiseStatistics | None = None, **options: Any) -> PTQDScheduler:
    scheduler = PTQDScheduler(**{**LDM, **options})
    scheduler.set_timesteps(steps)
    scheduler.set_statistics(given)
    return scheduler


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    x, eps, z = (torch.randn(2, 3, 8, 8, generator=random) for _ in range(3))
    return x, eps, z


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("options", [{}, {"clip_sample": True}], ids=["plain", "clipped"])
def test_off_is_the_parent_bit_for_bit(eta: float, options: dict[str, Any]) -> None:
    x, eps, z = inputs()
    ours, parent = ready(**options), DDIMScheduler(**{**LDM, **options})
    parent.set_timesteps(5)
    for t in parent.timesteps:
        found, wanted = (s.step(eps, t, x, eta=eta, variance_noise=z if eta else None) for s in (ours, parent))
        assert torch.equal(found.prev_sample, wanted.prev_sample)
        assert torch.equal(found.pred_original_sample, wanted.pred_original_sample)


@pytest.mark.parametrize("direction", ["calibrated", "scheduled"])
@pytest.mark.parametrize("clip", [False, True])
def test_step_is_section_7(direction: Any, clip: bool) -> None:
    """The affine form equals the formulas written out; with clipping the same formulas hold behind it."""
    x, eps, z = inputs()
    given = statistics()
    scheduler = ready(given=given, direction_sigma=direction, clip_sample=clip)
    row, t = 2, 401
    k, bias, s = float(given.k[row]), given.bias[row].float()[:, None, None], float(given.residual_std[row])
    a, b = scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[t - 200]
    noise = (eps - bias) / (1 + k)
    sigma2 = (1 - b) / (1 - a) * (1 - a / b)
    c = (1 - b - sigma2).sqrt() - (b * (1 - a) / a).sqrt()
    left2 = sigma2 - (c * s / (1 + k)) ** 2
    x0 = (x - (1 - a).sqrt() * noise) / a.sqrt()
    x0 = x0.clamp(-1, 1) if clip else x0
    inside = left2 if direction == "calibrated" else sigma2
    wanted = b.sqrt() * x0 + (1 - b - inside).sqrt() * noise + left2.sqrt() * z
    found = scheduler.step(eps, t, x, eta=1.0, variance_noise=z)
    torch.testing.assert_close(found.prev_sample, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.pred_original_sample, x0, rtol=1e-5, atol=1e-5)


def test_negative_slope_counts_as_none_unless_signed() -> None:
    eps = inputs()[1]
    given = statistics(slope=-0.05)
    clipped, signed = ready(given=given), ready(given=given, clip_negative_k=False)
    bias = given.bias[0].float()[:, None, None]
    torch.testing.assert_close(clipped.corrected(eps, 1), eps - bias)
    torch.testing.assert_close(signed.corrected(eps, 1), (eps - bias) / (1 + float(given.k[0])))


def test_a_prediction_that_does_not_follow_is_not_divided_by() -> None:
    """Slopes of -1 and below: a constant or an inverted prediction."""
    eps = inputs()[1]
    given = statistics(slope=-1.3)
    bias = given.bias[0].float()[:, None, None]
    torch.testing.assert_close(ready(given=given).corrected(eps, 1), eps - bias)
    for options in ({"clip_negative_k": False}, {"correction": "joint"}):
        with pytest.raises(UserError, match=r"slope -1.3 at time step 1"):
            ready(given=given, **options).corrected(eps, 1)
    sums = StatisticsAccumulator()
    sums.add(1, eps, torch.full_like(eps, 0.3))
    constant = ready(1, sums.finish(), correction="wiener").corrected(torch.full_like(eps, 0.3), 1)
    torch.testing.assert_close(constant, eps.mean((0, 2, 3))[:, None, None].expand_as(eps), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["joint", "wiener"])
def test_our_corrections_lower_the_error(kind: Any) -> None:
    random = torch.Generator().manual_seed(5)
    eps = torch.randn(64, 3, 8, 8, generator=random)
    coarse = eps * 1.05 + 0.1 + 0.05 * torch.randn(eps.shape, generator=random)
    error = (ready(given=statistics(), correction=kind).corrected(coarse, 1) - eps).square().mean()
    assert error < 0.3 * (coarse - eps).square().mean()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="are of 5 steps"):
        ready(10, statistics())
    scheduler = ready(given=statistics(eta=0.0))
    with pytest.raises(UserError, match=r"eta 0.0 do not fit eta 1.0"):
        scheduler.step(*inputs()[:1], 1, inputs()[1], eta=1.0)
    with pytest.raises(UserError, match="are of 5 steps"):
        scheduler.set_timesteps(20)
    with pytest.raises(UserError, match="v_prediction"):
        ready(given=statistics(), prediction_type="v_prediction")
    with pytest.raises(UserError, match="direction_sigma 'half'"):
        ready(direction_sigma="half")


def test_config_round_trip(tmp_path: Path) -> None:
    ready(direction_sigma="scheduled", clip_negative_k=False).save_pretrained(tmp_path)
    loaded = PTQDScheduler.from_pretrained(tmp_path)
    assert loaded.config.direction_sigma == "scheduled" and not loaded.config.clip_negative_k
    assert loaded.config.beta_end == 0.0195


def test_authors_files_both_ways(tmp_path: Path) -> None:
    given = statistics()
    write_official(tmp_path, given)
    found = read_official(tmp_path)
    assert torch.equal(found.k, given.k) and torch.equal(found.bias, given.bias)
    torch.testing.assert_close(found.residual_std, given.residual_std, rtol=1e-6, atol=0)
    import numpy as np

    np.save(tmp_path / "kt.npy", np.array({1: Path("x")}, dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="is no number, array or tensor"):
        read_official(tmp_path)


def test_authors_files_of_other_forms(tmp_path: Path) -> None:
    """Numbers as Python's, numpy's or torch's; a type that claims memory of its own is refused before it is built."""
    import numpy as np

    write_official(tmp_path, given := statistics())
    steps = given.timesteps.tolist()
    for wrap in (float, np.float32, lambda k: np.array(k), torch.tensor):
        table = {np.int64(t): wrap(k) for t, k in zip(steps, given.k.tolist(), strict=True)}
        np.save(tmp_path / "kt.npy", np.array(table, dtype=object), allow_pickle=True)
        torch.testing.assert_close(read_official(tmp_path).k, given.k)
    for content, message in (
        ({t: np.zeros(1, "V8")[0] for t in steps}, "no type of a number"),
        ({t: np.zeros(1, [("a", "O")]) for t in steps}, "no type of a number"),
        ({t: float("nan") for t in steps}, "is nan"),
        (dict.fromkeys(steps, "text"), "no table"),
    ):
        np.save(tmp_path / "kt.npy", np.array(content, dtype=object), allow_pickle=True)
        with pytest.raises(UserError, match=message):
            read_official(tmp_path)


def foreign(kind: str) -> torch.nn.Module:
    """A network that is quantised by others, or computed in fewer bits."""
    unet = tiny_unet()
    if kind == "bf16":
        return unet.to(torch.bfloat16)
    quantisation = pytest.importorskip("torchao.quantization")
    quantisation.quantize_(unet, quantisation.Int8WeightOnlyConfig())
    return unet


@pytest.mark.parametrize("kind", ["torchao", "bf16"])
def test_on_top_of_any_network_in_a_stock_pipeline(kind: str) -> None:
    exact, coarse = tiny_unet(), foreign(kind)
    width = next(iter(coarse.parameters())).dtype

    def predict(x: Tensor, t: int) -> Tensor:
        return coarse(x.to(width), t).sample.float()

    sums, plain = StatisticsAccumulator(), ready()
    start = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    for pair in collect_pairs(lambda x, t: exact(x, t).sample, predict, plain, start):
        sums.add(pair.timestep, pair.eps, pair.eps_q)
    given = sums.finish({"steps": 5, "eta": 0.0})
    assert 0 < (given.residual_std.max()) < 0.2
    pipeline = DDIMPipeline(copy.deepcopy(coarse), DDIMScheduler(**LDM))
    pipeline.register_modules(scheduler=PTQDScheduler(**LDM))  # its constructor makes a plain DDIM of any scheduler
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.set_statistics(given)
    images = pipeline(2, torch.Generator().manual_seed(3), eta=0.0, num_inference_steps=5, output_type="pt").images
    assert images.shape == (2, 3, 8, 8) and images.isfinite().all()


@pytest.mark.parametrize(
    ("ours", "parent"), [(CorrectedDPMSolver, DPMSolverMultistepScheduler), (CorrectedEuler, EulerDiscreteScheduler)]
)
def test_ode_samplers_follow_the_float_path(ours: Any, parent: Any) -> None:
    """Corrected predictions with slope and bias alone give the float trajectory back."""
    options = {k: v for k, v in LDM.items() if k not in ("clip_sample", "set_alpha_to_one")}
    options |= {"timestep_spacing": "leading"}
    net = tiny_unet()

    @torch.no_grad()
    def sample(scheduler: Any, wrong: bool) -> Tensor:
        scheduler.set_timesteps(5)
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4)) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            eps = net(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(eps * 1.05 + 0.1 if wrong else eps, t, x).prev_sample
        return x

    reference = parent(**options)
    exact, coarse = sample(reference, False), sample(parent(**options), True)
    off = ours(**options)
    assert torch.equal(sample(off, True), coarse)
    sums, random = StatisticsAccumulator(), torch.Generator().manual_seed(0)
    for t in reference.timesteps.int().tolist():
        eps = torch.randn(8, 3, 8, 8, generator=random)
        sums.add(t, eps, eps * 1.05 + 0.1)
    off.set_statistics(sums.finish())
    torch.testing.assert_close(sample(off, True), exact, rtol=1e-4, atol=1e-4)
