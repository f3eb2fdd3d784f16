"""Files that the authors' quantisation scripts write, both ways.

`quantw{W}_ldm_brecq.pth` and `quantw{W}a{A}_ldm_brecq.pth` are state dicts under `model.<official key>` with, for every
reconstructed layer, `weight_quantizer.alpha` and (in the second) `act_quantizer.delta`. They hold no weight ranges,
which follow from the weights; no zero points of activations, which followed from calibration records in an order that
nobody fixed; and no bit widths. A reader gives what is missing.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from paperkit.errors import UserError, one_line
from paperkit.files.keys import first_few
from paperkit.files.weights import read_checkpoint, read_weights, save_checkpoint
from ptq4dm.method.adaround import AdaRoundQuantizer, learn_rounding
from ptq4dm.method.calibration import Records
from ptq4dm.method.quant_layer import QuantLayer
from ptq4dm.method.quant_model import (
    QuantConfig,
    config_of,
    initialise_activation_ranges,
    initialise_weight_ranges,
    quant_layers,
    quantize,
    set_quantized,
)
from ptq4dm.models.compvis import load_official, official_name, to_official, unet_names
from ptq4dm.models.latent_diffusion import UNet

PREFIX = "model."
ALPHA, STEP = ".weight_quantizer.alpha", ".act_quantizer.delta"


def read_quantized(
    path: str | Path,
    unet: UNet,
    config: QuantConfig,
    records: Records | None = None,
    zero_points: Mapping[str, Tensor] | None = None,
    trust_pickle: bool = False,
) -> UNet:
    """Loads such a file into a float network, which is quantised in place, and returns it.

    Args:
        path: the file.
        unet: of the same shape; its weights are replaced.
        config: bits and range search, which the file does not tell.
        records: calibration records, shuffled; the zero points of activations come from the first 32.
        zero_points: of activations, by the layer's name in `unet`, instead of records.

    Raises:
        UserError: unreadable; keys that do not fit; steps without records or zero points; layers without a zero point.
    """
    state = read_weights(path, trust_pickle)
    return load_quantized(state, str(path), unet, config, records, zero_points)


def load_quantized(
    state: Mapping[str, Tensor],
    source: str,
    unet: UNet,
    config: QuantConfig,
    records: Records | None = None,
    zero_points: Mapping[str, Tensor] | None = None,
) -> UNet:
    """As `read_quantized`, from the file's content."""
    _check(config)
    if strange := [key for key in state if not key.startswith(PREFIX)]:
        raise UserError(f"{source} is no file of the quantisation scripts: {first_few(strange)} without {PREFIX}")
    content = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
    alphas = {key.removesuffix(ALPHA): content.pop(key) for key in [*content] if key.endswith(ALPHA)}
    steps = {key.removesuffix(STEP): content.pop(key) for key in [*content] if key.endswith(STEP)}
    load_official(unet, content, unet_names(unet), source)
    quantize(unet, config)
    layers = {official_name(unet, name): layer for name, layer in quant_layers(unet).items()}
    for what, found in (("alpha", alphas), ("activation step", steps)):
        if lost := sorted(found.keys() - layers.keys()):
            raise UserError(f"{source} has an {what} of {first_few(lost)}, which the chosen options leave float")
    initialise_weight_ranges(unet)
    for name, alpha in alphas.items():
        (rounding,) = learn_rounding(layers[name])
        _copy(rounding.alpha, alpha, f"{source}: {name}{ALPHA}")
    set_quantized(unet, weights=True, activations=False)
    if not steps:
        return unet
    _activations(unet, layers, steps, source, records, zero_points)
    return unet


def _activations(
    unet: UNet,
    layers: Mapping[str, QuantLayer],
    steps: Mapping[str, Tensor],
    source: str,
    records: Records | None,
    zero_points: Mapping[str, Tensor] | None,
) -> None:
    if lost := sorted(layers.keys() - steps.keys()):
        raise UserError(f"{source} lacks the activation step of {first_few(lost)}")
    if zero_points is None:
        if records is None:
            raise UserError(f"{source} holds no zero points of activations: give calibration records or zero points")
        initialise_activation_ranges(unet, records)
    names = {official_name(unet, name): name for name in quant_layers(unet)}
    for official, layer in layers.items():
        point = layer.act_quantizer.zero_point if zero_points is None else zero_points.get(names[official])
        if point is None:
            raise UserError(f"no zero point is given for {names[official]}")
        step = f"{source}: {official}{STEP}"
        if steps[official].numel() != 1 or not steps[official].all():
            raise UserError(
                f"{step} is {steps[official].flatten()[:3].tolist()}, and one number other than 0 is needed"
            )
        layer.act_quantizer.set_range(steps[official].to(layer.weight).reshape(()), point.to(layer.weight))
    set_quantized(unet, weights=True, activations=True)


def _check(config: QuantConfig) -> None:
    if config.shortcut_split or config.skip_bits is not None or config.attention_matmul_bits is not None:
        raise UserError(
            "the authors' files have no place for a shortcut split, 8-bit skip and attention, or quantised products"
        )


def _copy(to: Tensor, tensor: Tensor, what: str) -> None:
    if to.shape != tensor.shape:
        raise UserError(f"{what} has shape {tuple(tensor.shape)}, and the weight {tuple(to.shape)}")
    with torch.no_grad():
        to.copy_(tensor)


def quantized_state(unet: UNet, activations: bool = True) -> dict[str, Tensor]:
    """The content of such a file, from a quantised network.

    Args:
        activations: with the steps of activations (the second file).

    Raises:
        UserError: a network that is not quantised, or with an option that the authors' files have no place for.
    """
    _check(config_of(unet))
    found = quant_layers(unet)
    names = {
        official: ours for official, ours in unet_names(unet).items() if not any("quantizer" in name for name in ours)
    }
    state = {PREFIX + key: tensor.detach() for key, tensor in to_official(unet, names).items()}
    for name, layer in found.items():
        official = PREFIX + official_name(unet, name)
        if isinstance(layer.weight_quantizer, AdaRoundQuantizer):
            state[official + ALPHA] = layer.weight_quantizer.alpha.detach()
        if activations:
            state[official + STEP] = layer.act_quantizer.delta.detach()
    return state


def write_quantized(path: str | Path, unet: UNet, activations: bool = True) -> None:
    """Writes such a file; the ranges that it cannot hold are lost, see the head of this module.

    Raises:
        UserError: as `quantized_state`; `cannot write <path>`.
    """
    save_checkpoint(path, quantized_state(unet, activations))


def read_inputs(path: str | Path, trust_pickle: bool = False) -> Records:
    """Calibration records from `imagenet_input_{S}steps.pth`: a list of (x, t, context), one entry a call.

    Raises:
        UserError: unreadable, or something else.
    """
    return Records(*_joined(path, trust_pickle))


def write_inputs(path: str | Path, records: Records, batch: int = 8) -> None:
    """Writes calibration records in that form, `batch` of them an entry.

    Raises:
        UserError: records without a context; `cannot write <path>`.
    """
    if records.context is None:
        raise UserError("the authors' file of inputs holds contexts, and these records have none")
    starts = range(0, len(records), batch)
    save_checkpoint(path, [_cut(records[start : start + batch]) for start in starts])


def _cut(records: Records) -> tuple[Tensor, Tensor, Tensor]:
    assert records.context is not None
    return records.x.clone(), records.t.clone(), records.context.clone()


def read_pairs(path: str | Path, trust_pickle: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """`data_error_t_*.pth`: noise predictions (N, C, H, W), their errors (N, C, H, W) and time steps (N,).

    Raises:
        UserError: unreadable, or something else.
    """
    eps, delta, t = _joined(path, trust_pickle)
    if eps.shape != delta.shape or t.shape != eps.shape[:1]:
        raise UserError(f"{path}: predictions {tuple(eps.shape)}, errors {tuple(delta.shape)}, steps {tuple(t.shape)}")
    return eps, delta, t


def write_pairs(path: str | Path, eps: Tensor, delta: Tensor, t: Tensor) -> None:
    """Writes such a file, one image and step an entry.

    Raises:
        UserError: `cannot write <path>`.
    """
    parts = zip(eps.split(1), delta.split(1), t.split(1), strict=True)
    save_checkpoint(path, [(a.clone(), b.clone(), c.clone()) for a, b, c in parts])


def _joined(path: str | Path, trust_pickle: bool) -> list[Tensor]:
    """A list of triples of tensors (N, ...) or numbers, each of the three joined along N."""
    content = read_checkpoint(path, trust_pickle)
    whole = isinstance(content, list) and content
    if not whole or not all(isinstance(entry, tuple | list) and len(entry) == 3 for entry in content):
        raise UserError(f"{path} is no list of 3-tuples, as the authors' scripts write it")
    try:
        return [torch.cat([torch.atleast_1d(torch.as_tensor(entry[i])) for entry in content]) for i in range(3)]
    except (TypeError, ValueError, RuntimeError) as error:
        reason = one_line(str(error))[:200]
        raise UserError(f"{path} holds something other than tensors that fit together: {reason}") from error
