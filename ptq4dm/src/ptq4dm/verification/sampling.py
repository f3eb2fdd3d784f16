"""Reference files of the sampler: schedule, statistics of the noise, corrected steps, and whole trajectories."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paperkit.errors import UserError
from paperkit.verification.reference_file import ReferenceFile
from paperkit.verification.verify import Check, check_options
from ptq4dm.deployment.scoring import Moments, frechet, inception_score
from ptq4dm.method.correction import ddim_sigma, sampled_steps
from ptq4dm.method.noise_statistics import NoiseStatistics, StatisticsAccumulator
from ptq4dm.method.trajectories import Pair, Predict, collect_pairs, guided
from ptq4dm.models.ddim_scheduler import PTQDScheduler
from ptq4dm.verification.quantizers import Computed, cases, close

NET = (
    "eps = 1.3*tanh(conv3x3(x, W, b, padding=1)*(1+t/2000) + c[:,:,None,None]); fp: (W, no bias), quantised: (W_q, b_q)"
)


def _scheduler(config: Mapping[str, Any], steps: int) -> PTQDScheduler:
    """The paper's, with the authors' sampled steps, which differ from diffusers' where `steps` does not divide 1000."""
    scheduler = PTQDScheduler(
        num_train_timesteps=1000, beta_start=config["linear_start"], beta_end=config["linear_end"],
        beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    sampled = sampled_steps(steps)
    if sampled[-1] > 999:
        raise UserError(f"{steps} steps reach time step {sampled[-1]}; the schedule ends at 999")
    scheduler.timesteps = torch.tensor(sampled[::-1])
    # diffusers multiplies in float32, the authors in float64; a coefficient that nearly cancels shows the difference.
    betas = torch.linspace(config["linear_start"] ** 0.5, config["linear_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    scheduler.betas, scheduler.alphas_cumprod = betas.float(), (1 - betas).cumprod(0).float()
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


def ddim_schedule(file: ReferenceFile) -> Computed:
    """Time steps, alphas and sigmas of each case."""
    computed: Computed = {}
    for name, options in cases(file).items():
        check_options(options, ("linear_start", "linear_end", "steps", "eta"), f"config.{name}")
        scheduler = _scheduler(options, options["steps"])
        steps = scheduler.timesteps.flip(0)
        alphas = scheduler.alphas_cumprod
        before = torch.cat([alphas[:1], alphas[steps[:-1]]])
        pairs = zip(alphas[steps].double().tolist(), before.double().tolist(), strict=True)
        sigmas = [ddim_sigma(alpha, alpha_prev, options.get("eta", 0.0)) for alpha, alpha_prev in pairs]
        found = {
            "timesteps": steps, "alphas": alphas[steps], "alphas_prev": before,
            "sigmas": torch.tensor(sigmas), "betas": scheduler.betas,
        }  # fmt: skip
        for part, value in found.items():
            key = f"out.{name}.{part}"
            if key in file.tensors:
                computed[key] = value.to(file.tensors[key].dtype)
    return computed


def _statistics(eps: Tensor, delta: Tensor, t: Tensor) -> NoiseStatistics:
    """Of pairs that are given as prediction and error."""
    if eps.shape != delta.shape or t.shape != eps.shape[:1]:
        raise UserError(f"predictions {tuple(eps.shape)}, errors {tuple(delta.shape)}, steps {tuple(t.shape)}")
    sums = StatisticsAccumulator()
    exact, error = eps.double(), delta.double()
    for one in range(len(t)):
        sums.add(int(t[one]), exact[one, None], exact[one, None] + error[one, None])
    return sums.finish()


def _told(statistics: NoiseStatistics, wanted: Mapping[str, Tensor], tolerance: float) -> Computed:
    """Those results of the statistics that a file has."""
    names = {"k": "k", "r_value": "r", "bias": "bias", "residual_std": "residual_std"}
    computed: Computed = {"out.timesteps": statistics.timesteps}
    for theirs, ours in names.items():
        if theirs in wanted:
            computed[f"out.{theirs}"] = close(getattr(statistics, ours), wanted[theirs].double(), tolerance)
    return computed


def noise_statistics(file: ReferenceFile) -> Computed:
    """Statistics of given pairs."""
    found = _statistics(file.inputs["eps_fp"], file.inputs["delta"], file.inputs["t"])
    return _told(found, file.outputs, 1e-5)


def _given_statistics(part: Callable[[str], Tensor]) -> NoiseStatistics:
    """Statistics that stand in a file; what a correction does not use is left out."""
    steps, k = part("timesteps").long(), part("k").double()
    nothing = torch.zeros_like(k)
    return NoiseStatistics(steps, k, nothing, part("bias").double(), part("residual_std").double(), nothing)


def corrected_ddim_step(file: ReferenceFile) -> Computed:
    """One step of each case, with the branch that the variance calibration takes."""
    scheduler = _scheduler(file.config, file.config["steps"])
    statistics = _given_statistics(lambda name: file.inputs[name])
    known = ("name", "eta", "correct", "index", "t", "guidance", "sigma", "excess_variance", "branch")
    computed: Computed = {}
    for number, case in enumerate(file.config["cases"]):
        where = f"config.cases.{number}"
        check_options(case, known, where)
        inputs, name, eta = file.part(f"in.{case['name']}."), case["name"], float(case["eta"])
        scheduler.set_statistics(statistics if case["correct"] else None)
        t = int(statistics.timesteps[case["index"]])
        noise = _guided(inputs, case.get("guidance", 1.0))
        out = scheduler.step(noise, t, inputs["x"], eta=eta, variance_noise=inputs["noise"])
        computed[f"out.{name}.x_prev"] = out.prev_sample
        computed[f"out.{name}.pred_x0"] = out.pred_original_sample
        alpha, alpha_prev = scheduler.alpha_pair(t)
        sigma, excess, branch = ddim_sigma(alpha, alpha_prev, eta), 0.0, "zero"
        if case["correct"]:
            found = scheduler.constants(t, eta)
            excess, branch = found.excess, "reduced" if found.sigma > 0 else "zero"
        elif sigma > 0:
            branch = "reduced"
        told = {"t": t, "sigma": sigma, "excess_variance": excess, "branch": branch}
        computed |= {f"{where}.{key}": value for key, value in told.items() if key in case}
    return computed


def _guided(inputs: Mapping[str, Tensor], scale: float) -> Tensor:
    names = {"eps", "eps_cond", "eps_uncond"} & inputs.keys()
    if "eps_uncond" in names and scale != 1:
        return guided(inputs["eps_uncond"], inputs["eps_cond"], scale)
    return inputs["eps_cond" if "eps_cond" in names else "eps"]


def collect_and_sample(file: ReferenceFile) -> Computed:
    """Pairs along the float trajectories, their statistics, then sampling with and without correction."""
    c = file.config
    if c.get("net", NET) != NET:
        raise UserError(f"the networks of this kind are {NET}")
    inputs, eta, scale = file.inputs, float(c["eta"]), float(c.get("guidance", 1.0))
    scheduler = _scheduler(c, c["steps"])
    count, sums = len(scheduler.timesteps), StatisticsAccumulator()

    def predictor(weight: Tensor, bias: Tensor | None, context: Tensor) -> Predict:
        def single(x: Tensor, t: int, c: Tensor) -> Tensor:
            return 1.3 * torch.tanh(F.conv2d(x, weight, bias, padding=1) * (1 + t / 2000) + c[:, :, None, None])

        def predict(x: Tensor, t: int) -> Tensor:
            conditional = single(x, t, context)
            return conditional if scale == 1 else guided(single(x, t, inputs["uncond"]), conditional, scale)

        return predict

    pairs: list[Pair] = []
    for run, context in enumerate(inputs["context"]):
        exact, coarse = predictor(inputs["W"], None, context), predictor(inputs["W_q"], inputs["b_q"], context)
        drawn = inputs["collect_noise"][run * count : (run + 1) * count]
        pairs += collect_pairs(exact, coarse, scheduler, inputs["x_T"][run], eta, noise=drawn.__getitem__)
    for pair in pairs:
        sums.add(pair.timestep, pair.eps, pair.eps_q)
    eps, delta = torch.cat([pair.eps for pair in pairs]), torch.cat([pair.eps_q - pair.eps for pair in pairs])
    statistics, out = sums.finish(), file.outputs
    computed = _told(statistics, out, 1e-4)
    computed["out.t"] = torch.tensor([pair.timestep for pair in pairs]).repeat_interleave(inputs["x_T"].shape[1])
    computed["out.eps_fp"], computed["out.delta"] = eps, delta
    computed["out.collect_x0"] = pairs[count - 1].x_prev
    coarse = predictor(inputs["W_q"], inputs["b_q"], inputs["context"][0])
    for name, given in (("correct0", None), ("correct1", statistics)):
        scheduler.set_statistics(given)
        x = inputs["x_T"][0]
        for number, t in enumerate(scheduler.timesteps.tolist()):
            drawn = inputs[f"sample_noise.{name}"][number]
            x = scheduler.step(coarse(x, t), t, x, eta=eta, variance_noise=drawn).prev_sample
        computed[f"out.sample.{name}"] = x
    return computed


def metrics(file: ReferenceFile) -> dict[str, Tensor | Check]:
    """Frechet distance and Inception score of given rows."""
    a, b = (Moments.of(file.inputs[name]) for name in ("a", "b"))
    logits = file.inputs["probs"].double().clamp(min=1e-300).log()
    found = {"frechet": frechet(a, b), "inception_score": inception_score(logits, file.config["is_split_size"])}
    return {
        f"out.{name}": close(torch.tensor(value, dtype=torch.float64), file.outputs[name].double(), 1e-4)
        for name, value in found.items()
        if name in file.outputs
    }
