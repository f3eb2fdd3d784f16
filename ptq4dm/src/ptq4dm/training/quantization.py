"""The quantised network of a run: rounding learned once, ranges and steps for each bit width of activations."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.errors import UserError
from paperkit.files.weights import read_safetensors, save_weights
from ptq4dm.method.adaround import learn_rounding
from ptq4dm.method.calibration import Records
from ptq4dm.method.quant_model import (
    ActivationRange,
    QuantConfig,
    activation_ranges,
    initialise_activation_ranges,
    initialise_weight_ranges,
    low_bit_layers,
    quant_layers,
    set_activation_bits,
    set_activation_ranges,
    set_quantized,
)
from ptq4dm.method.reconstruction import (
    Progress,
    StepSettings,
    WeightSettings,
    estimate_cache_bytes,
    learn_steps,
    reconstruct_weights,
    unit_names,
)
from ptq4dm.method.unit_cache import check_room
from ptq4dm.training.progress import progress
from ptq4dm.training.settings import BitsConfig, ReconstructionConfig

Ranges = dict[int, dict[str, ActivationRange]]
"""Bit width of activations -> the range of every activation."""


def quant_config(bits: BitsConfig) -> QuantConfig:
    """What `quantize` is told."""
    options = asdict(bits)
    for own in ("candidates", "mean_bits", "monotone"):
        options.pop(own)
    return QuantConfig(**options)


def widths(bits: BitsConfig) -> list[int]:
    """Bit widths of activations, ascending; one without mixed precision."""
    return sorted({*bits.candidates}) or [bits.activation_bits]


def weight_settings(config: ReconstructionConfig, seed: int) -> WeightSettings:
    """Of the rounding; it must have iterations."""
    return WeightSettings(
        config.weight_iterations, config.weight_batch, config.weight_lr, seed=seed, cache=config.cache,
        half_cache=config.half_cache, rounding_weight=config.rounding_weight,
    )  # fmt: skip


def step_settings(config: ReconstructionConfig, seed: int) -> StepSettings:
    """Of the activations' steps; it must have iterations."""
    return StepSettings(
        config.step_iterations, config.step_batch, config.step_lr, seed=seed, cache=config.cache,
        half_cache=config.half_cache,
    )  # fmt: skip


def check_memory(unet: nn.Module, example: Records, records: int, config: ReconstructionConfig, store: Path) -> None:
    """Counts what the reconstruction will keep, before anything is sampled, and prints it.

    Args:
        example: one record.

    Raises:
        UserError: it does not fit where it is to be kept.
    """
    if not (config.weight_iterations or config.step_iterations):
        return
    settings = weight_settings(config, 0) if config.weight_iterations else step_settings(config, 0)
    needed = estimate_cache_bytes(unet, example, settings) * records  # of one record
    print(f"reconstruction keeps up to {needed / 1e6:,.1f} MB on {config.cache}", flush=True)
    check_room(needed, config.cache, next(unet.parameters()).device, store)


def learn(
    unet: nn.Module,
    records: Records,
    bits: BitsConfig,
    config: ReconstructionConfig,
    range_records: int,
    seed: int,
    run: Path,
) -> Ranges:
    """Fits a quantised network to its own float weights; every finished unit is a file in the run folder."""
    initialise_weight_ranges(unet)
    if config.weight_iterations:
        settings = weight_settings(config, seed)
        with progress("weights", len(unit_names(unet)) * settings.iterations) as advance:
            reconstruct_weights(unet, records, settings, run / "weights", Progress(advance=advance))
    found: Ranges = {}
    for width in widths(bits):
        set_activation_bits(unet, width)
        initialise_activation_ranges(unet, records, range_records)
        if config.step_iterations:
            steps, name = step_settings(config, seed), f"activations_a{width}"
            with progress(name, len(unit_names(unet)) * steps.iterations) as advance:
                learn_steps(unet, records, steps, run / name, Progress(advance=advance))
        found[width] = activation_ranges(unet)
    return found


def save_quantized(folder: Path, unet: nn.Module, ranges: Ranges) -> None:
    """Writes what the quantisers know: `weights.safetensors`, and `activations_a<bits>.safetensors` for each width."""
    for width, of_width in ranges.items():
        state: dict[str, Tensor] = {}
        for name, (bits, delta, zero_point) in of_width.items():
            state[f"{name}.delta"], state[f"{name}.zero_point"] = delta, zero_point
            state[f"{name}.bits"] = torch.tensor(bits)
        save_weights(folder / f"activations_a{width}.safetensors", state)
    save_weights(folder / "weights.safetensors", _weight_state(unet))  # last: where it is, everything is


def load_quantized(folder: Path, unet: nn.Module, bits: BitsConfig) -> Ranges:
    """Puts what `save_quantized` wrote into a network that `quantize` made; activations get the widest ranges.

    Raises:
        UserError: files that are missing or damaged, or of another network.
    """
    path = folder / "weights.safetensors"
    state, _ = read_safetensors(path)
    initialise_weight_ranges(unet)
    for layer in quant_layers(unet).values():
        if any(f"{quantizer.name}.alpha" in state for _, quantizer in layer.weight_quantizers):
            learn_rounding(layer)
    expected = _weight_state(unet)
    odd = [key for key in {**state, **expected} if key not in state or key not in expected]
    odd += [key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape]
    if odd:
        raise UserError(f"{path} is of another network: it differs in {len(odd)} tensors, first {sorted(odd)[0]}")
    unet.load_state_dict(state, strict=False)
    device = next(unet.parameters()).device
    found: Ranges = {}
    for width in widths(bits):
        tensors, _ = read_safetensors(folder / f"activations_a{width}.safetensors")
        names = {key.removesuffix(".delta") for key in tensors if key.endswith(".delta")}
        try:
            found[width] = {
                name: ActivationRange(
                    int(tensors[f"{name}.bits"]),
                    tensors[f"{name}.delta"].to(device),
                    tensors[f"{name}.zero_point"].to(device),
                )
                for name in sorted(names)
            }
        except KeyError as error:
            raise UserError(f"{folder}: activations_a{width}.safetensors lacks {error}") from error
    set_activation_ranges(unet, found[max(found)])
    set_quantized(unet, weights=True, activations=True)
    return found


def _weight_state(unet: nn.Module) -> dict[str, Tensor]:
    """Keys of the weights' quantisers."""
    return {key: value for key, value in unet.state_dict().items() if ".weight_quantizer" in key}


def summary(unet: nn.Module) -> dict[str, Any]:
    """For metrics.json: how many layers, and how many weights, at which bits."""
    found: dict[str, Any] = {}
    low = low_bit_layers(unet)
    for name, layer in quant_layers(unet).items():
        kind = "W{}A{}".format(*layer.bits) + ("" if name in low else " (first, last or skip)")
        layers, weights = found.get(kind, (0, 0))
        found[kind] = (layers + 1, weights + layer.weight.numel())
    return {kind: {"layers": layers, "weights": weights} for kind, (layers, weights) in found.items()}
