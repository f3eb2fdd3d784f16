"""Settings of the engine `ldm`; the defaults are the authors' scripts' for ImageNet at 20 steps, W4A8."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ModelConfig:
    """The float model.

    Args:
        path: a pipeline folder of diffusers, a folder of its U-Net alone, or a CompVis file (model.ckpt).
        network: of a CompVis file: cin256-v2, lsun_beds256 or lsun_churches256.
        contexts: of a U-Net with cross-attention but no class embedding, such as a text-to-image one: a safetensors
            file with `contexts` (K, L, D), one row for each prompt, and `null` (L, D) for the unconditional half.
        trust_pickle: read a CompVis file that may run code.
    """

    path: str | None = None
    network: str | None = None
    contexts: str | None = None
    trust_pickle: bool = False


@dataclass
class SamplerConfig:
    """The DDIM sampler that the model will be used with; everything below is fitted to it.

    Args:
        steps: of one image.
        eta: 0 is deterministic, 1 is ancestral.
        guidance: scale of classifier-free guidance; 1 makes one call a step.
    """

    steps: int = 20
    eta: float = 0.0
    guidance: float = 3.0


@dataclass
class BitsConfig:
    """How the network is quantised, as `ptq4dm.QuantConfig` says it.

    Args:
        weight_bits: 2 to 8.
        activation_bits: 2 to 8; without `candidates`, of every step.
        channel_wise_weights: one range for each output channel: better, and not what the authors' code does.
        scale_method: mse, max or max_scale.
        first_last_bits: of the first and last layers.
        skip_bits: of skip and downsampling convolutions; null leaves them float, as the authors do.
        attention_matmul_bits: of the products inside attention; null leaves them float.
        shortcut_split: own ranges for the halves of a concatenated input.
        candidates: mixed precision: activation bits, of which each step gets one; every candidate has own ranges,
            steps and statistics over one set of weights.
        mean_bits: a bound on the mean over the steps, spent where it lowers the error of the samples most, instead of
            the rule by signal-to-noise ratios (ours).
        monotone: let the bits never fall from a step to a later one.
    """

    weight_bits: int = 4
    activation_bits: int = 8
    channel_wise_weights: bool = False
    scale_method: Literal["mse", "max", "max_scale"] = "mse"
    first_last_bits: int | None = 8
    skip_bits: int | None = None
    attention_matmul_bits: int | None = None
    shortcut_split: bool = False
    candidates: list[int] = field(default_factory=list)
    mean_bits: float | None = None
    monotone: bool = False


@dataclass
class CalibrationConfig:
    """What the float model is sampled for.

    Args:
        images: sampled for their calls, spread evenly over the classes or contexts.
        records: calls drawn of them all, for ranges and reconstruction.
        range_records: of these, behind the ranges of activations.
        pairs: images sampled for the noise statistics, of classes drawn uniformly.
        batch: images side by side.
    """

    images: int = 4000
    records: int = 1024
    range_records: int = 32
    pairs: int = 1024
    batch: int = 16


@dataclass
class ReconstructionConfig:
    """Learned rounding of the weights, then learned steps of the activations; unit by unit.

    Args:
        weight_iterations: of Adam on a unit; 0 rounds to nearest.
        weight_batch: records of an iteration.
        weight_lr: learning rate of the rounding.
        rounding_weight: of the term that drives the rounding to 0 or 1.
        step_iterations: of Adam on a unit's steps; 0 leaves the ranges as searched.
        step_batch: records of an iteration.
        step_lr: learning rate of the steps, which falls to 0 by a cosine.
        cache: where a unit's inputs and targets are kept: device, host or disk.
        half_cache: keep them in bfloat16.
    """

    weight_iterations: int = 10000
    weight_batch: int = 8
    weight_lr: float = 1e-3
    rounding_weight: float = 0.01
    step_iterations: int = 5000
    step_batch: int = 16
    step_lr: float = 4e-4
    cache: Literal["device", "host", "disk"] = "host"
    half_cache: bool = False


@dataclass
class EvaluationConfig:
    """What `eval` samples, from the same noise for every arm.

    Args:
        images: of each arm.
        seed: other than the run's, so that nothing is judged on what it was fitted to.
        clip_negative_k: the authors' rule; false also divides by 1 + k where k is negative.
        direction_sigma: calibrated as in the authors' code, or scheduled as in theory.
    """

    images: int = 16
    seed: int = 1
    clip_negative_k: bool = True
    direction_sigma: Literal["calibrated", "scheduled"] = "calibrated"
