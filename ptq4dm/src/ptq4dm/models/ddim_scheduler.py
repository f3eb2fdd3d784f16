"""DDIM of diffusers with the quantisation noise corrected at every step (section 7 of the method).

Shapes: B batch, C channels, H height, W width.
"""

from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from paperkit.errors import UserError
from ptq4dm.method.correction import (
    CORRECTIONS,
    DIRECTIONS,
    Correction,
    DirectionSigma,
    NoiseCorrection,
    StepConstants,
    affine,
    noise_correction,
    step_constants,
)
from ptq4dm.method.noise_statistics import NoiseStatistics

LDM_SCHEDULE: dict[str, Any] = dict(
    num_train_timesteps=1000, beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False,
    set_alpha_to_one=False, steps_offset=1,
)  # fmt: skip
"""Options of DDIM's scheduler: the noise schedule of the paper's latent diffusion models."""


class PTQDScheduler(DDIMScheduler):
    """Corrects the predictions of any quantised network; without statistics it is its parent, bit for bit.

    scheduler = PTQDScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_statistics(NoiseStatistics.load("statistics.safetensors"))
    pipeline.scheduler = scheduler  # `DDIMPipeline(unet, scheduler)` itself would make a plain DDIM of it

    It must see the prediction behind guidance, with the guidance that the statistics were collected with.

    Args:
        correction: see `ptq4dm.method.correction.Correction`.
        clip_negative_k: a negative slope counts as 0, as in the authors' code. False helped at eta 0.
        direction_sigma: see `ptq4dm.method.correction.DirectionSigma`.
        options: of `DDIMScheduler`.

    Raises:
        UserError: an unknown correction or direction, or a network that does not predict noise.
    """

    def __init__(
        self,
        correction: Correction = "official",
        clip_negative_k: bool = True,
        direction_sigma: DirectionSigma = "calibrated",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for name, value, known in (
            ("correction", correction, CORRECTIONS), ("direction_sigma", direction_sigma, DIRECTIONS),
        ):  # fmt: skip
            if value not in known:
                raise UserError(f"{name} {value!r}; it is one of {', '.join(known)}")
        self.register_to_config(correction=correction, clip_negative_k=clip_negative_k, direction_sigma=direction_sigma)
        self.statistics: NoiseStatistics | None = None
        self._constants: dict[tuple[Any, ...], tuple[StepConstants, Tensor, Tensor]] = {}

    @property
    def _options(self) -> Any:
        """The configuration, whose attributes types do not know."""
        return self.config

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        """Names that `from_config` passes on: `options` stands for the parent's."""
        own = DDIMScheduler._get_init_keys(input_class)
        return (own | DDIMScheduler._get_init_keys(DDIMScheduler)) - {"options"}

    def set_statistics(self, statistics: NoiseStatistics | None) -> None:
        """What to correct by; None switches the correction off.

        Raises:
            UserError: statistics of other sampled steps than those set, or a network that does not predict noise.
        """
        if statistics is not None:
            if self._options.prediction_type != "epsilon":
                raise UserError(f"the network predicts {self._options.prediction_type}; the correction needs epsilon")
            if self.num_inference_steps is not None:
                statistics.check_timesteps(self.timesteps)
        self.statistics = statistics
        self._constants.clear()

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """As the parent's.

        Raises:
            UserError: the statistics are of other steps.
        """
        super().set_timesteps(num_inference_steps, device)
        self._constants.clear()
        if self.statistics is not None:
            self.statistics.check_timesteps(self.timesteps)

    def corrected(self, model_output: Tensor, timestep: int) -> Tensor:
        """The corrected noise prediction (B, C, H, W); as it is without statistics."""
        if self.statistics is None:
            return model_output
        return self._correction(self.statistics, int(timestep))(model_output)

    def _correction(self, statistics: NoiseStatistics, timestep: int) -> NoiseCorrection:
        return noise_correction(statistics, timestep, self._options.correction, self._options.clip_negative_k)

    def constants(self, timestep: int, eta: float) -> StepConstants:
        """The numbers of one corrected step.

        Raises:
            UserError: statistics that do not know the step, or were collected with another eta.
        """
        if self.statistics is None or self.num_inference_steps is None:
            raise UserError("a corrected step needs statistics and sampling steps: set_statistics, set_timesteps")
        if "eta" in self.statistics.identity:
            self.statistics.check({"eta": eta})
        alpha, alpha_prev = self.alpha_pair(timestep)
        correction = self._correction(self.statistics, timestep)
        return step_constants(correction, alpha, alpha_prev, eta, self._options.direction_sigma)

    def alpha_pair(self, timestep: int) -> tuple[float, float]:
        """`alpha` of a step and of the one that follows in sampling."""
        before = timestep - self._options.num_train_timesteps // self.num_inference_steps
        alpha_prev = self.alphas_cumprod[before] if before >= 0 else self.final_alpha_cumprod
        return float(self.alphas_cumprod[timestep]), float(alpha_prev)

    def exceeded_steps(self, eta: float) -> list[int]:
        """Time steps whose prediction brings more noise than the sampler would add; their excess stays."""
        return [t for t in self.timesteps.tolist() if self.constants(t, eta).exceeded]

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As the parent's, on the corrected prediction and with the calibrated variance.

        Raises:
            UserError: statistics that do not fit.
        """
        if self.statistics is None:
            return super().step(
                model_output, timestep, sample, eta, use_clipped_model_output, generator, variance_noise, return_dict
            )
        if variance_noise is not None and generator is not None:
            raise ValueError("pass either generator or variance_noise")
        found, x0_offset, prev_offset = self._cached(int(timestep), float(eta), model_output)
        if self._options.clip_sample or self._options.thresholding:
            x0, x_prev = self._clipped(found, model_output, timestep, sample, use_clipped_model_output)
        else:
            x0 = affine(sample, found.x0_x, model_output, found.x0_eps, x0_offset)
            x_prev = affine(sample, found.prev_x, model_output, found.prev_eps, prev_offset)
        if eta > 0:  # drawn even where none is added, so that the numbers of the steps that follow stay the same
            if variance_noise is None:
                variance_noise = randn_tensor(
                    model_output.shape, generator=generator, device=model_output.device, dtype=model_output.dtype
                )
            x_prev = torch.add(x_prev, variance_noise, alpha=found.sigma)
        return DDIMSchedulerOutput(x_prev, x0) if return_dict else (x_prev, x0)

    def _cached(self, timestep: int, eta: float, like: Tensor) -> tuple[StepConstants, Tensor, Tensor]:
        """The step's numbers, its offsets as (1, C, 1, 1) where the prediction is."""
        key = (timestep, eta, like.device, like.dtype, like.dim())
        if key not in self._constants:
            found = self.constants(timestep, eta)
            if len(found.x0_offset) != like.shape[1]:
                raise UserError(
                    f"noise statistics of {len(found.x0_offset)} channels; predictions have {like.shape[1]}"
                )
            shape = (1, -1, *[1] * (like.dim() - 2))
            x0_offset, prev_offset = (o.to(like).reshape(shape) for o in (found.x0_offset, found.prev_offset))
            self._constants[key] = (found, x0_offset, prev_offset)
        return self._constants[key]

    def _clipped(
        self, found: StepConstants, model_output: Tensor, timestep: int, sample: Tensor, rederive: bool
    ) -> tuple[Tensor, Tensor]:
        """The step where `x0` is clipped, which comes behind the correction."""
        alpha, alpha_prev = self.alpha_pair(int(timestep))
        noise = found.correction(model_output)
        x0 = (sample - (1 - alpha) ** 0.5 * noise) / alpha**0.5
        if self._options.thresholding:
            x0 = self._threshold_sample(x0)
        else:
            x0 = x0.clamp(-self._options.clip_sample_range, self._options.clip_sample_range)
        if rederive:
            noise = (sample - alpha**0.5 * x0) / (1 - alpha) ** 0.5
        return x0, alpha_prev**0.5 * x0 + found.direction * noise
