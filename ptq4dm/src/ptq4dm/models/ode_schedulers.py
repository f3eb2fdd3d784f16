"""DPM-Solver++ and Euler of diffusers on corrected predictions: an extension of ours, the paper has DDIM alone.

Both solve an ordinary differential equation, so there is no noise whose variance could be calibrated: as in DDIM at
eta 0, slope and bias act alone. Statistics must be collected along the same sampler. In the stochastic variants
(`sde-dpmsolver++`, `s_churn`) the prediction is corrected and the noise is left as it is.
"""

from typing import Any

from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import Tensor

from paperkit.errors import UserError
from ptq4dm.method.correction import Correction, noise_correction
from ptq4dm.method.noise_statistics import NoiseStatistics


class _CorrectsPrediction:
    """What both share: corrects the noise prediction, then takes the parent's step; the parent's own without it."""

    statistics: NoiseStatistics | None = None
    correction: Correction = "joint"
    clip_negative_k: bool = True
    timesteps: Tensor
    config: Any
    num_inference_steps: int | None

    def set_statistics(
        self, statistics: NoiseStatistics | None, correction: Correction = "joint", clip_negative_k: bool = True
    ) -> None:
        """What to correct by; None switches it off.

        Args:
            correction, clip_negative_k: see `ptq4dm.method.correction`.

        Raises:
            UserError: statistics of other sampled steps than those set, or a network that does not predict noise.
        """
        if statistics is not None:
            if self.config.prediction_type != "epsilon":
                raise UserError(f"the network predicts {self.config.prediction_type}; the correction needs epsilon")
            if self.num_inference_steps is not None:
                statistics.check_timesteps(self.timesteps)
        self.statistics, self.correction, self.clip_negative_k = statistics, correction, clip_negative_k

    def set_timesteps(self, *args: Any, **named: Any) -> None:
        """As the parent's.

        Raises:
            UserError: the statistics are of other steps.
        """
        super().set_timesteps(*args, **named)  # type: ignore[misc]  # of the scheduler beside this class
        if self.statistics is not None:
            self.statistics.check_timesteps(self.timesteps)

    def step(self, model_output: Tensor, timestep: Any, *args: Any, **named: Any) -> Any:
        """As the parent's, on the corrected prediction (B, C, H, W)."""
        if self.statistics is not None:
            found = noise_correction(self.statistics, int(timestep), self.correction, self.clip_negative_k)
            model_output = found(model_output)
        return super().step(model_output, timestep, *args, **named)  # type: ignore[misc]


class CorrectedDPMSolver(_CorrectsPrediction, DPMSolverMultistepScheduler):  # type: ignore[misc]  # annotations of diffusers
    """DPM-Solver++ with `set_statistics`; options are the parent's."""


class CorrectedEuler(_CorrectsPrediction, EulerDiscreteScheduler):  # type: ignore[misc]  # annotations of diffusers
    """Euler with `set_statistics`; options are the parent's."""
