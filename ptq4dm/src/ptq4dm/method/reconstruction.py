"""Unit by unit, a quantised network is fitted to the float one (sections 4 and 5 of the method; after BRECQ).

`reconstruct_weights` learns how each weight is rounded, `learn_steps` the step of each activation. A unit is a
`ResnetBlock2D`, a `BasicTransformerBlock`, or any other low-bit layer; its target is what it gives in the float
network. With a folder, each finished unit is a file of its own, and the same call goes on behind the last of them, to
the same bits.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from paperkit.errors import UserError
from paperkit.files.atomic import remove_stale_temporaries
from paperkit.files.weights import read_safetensors, save_weights
from ptq4dm.method.adaround import AdaRoundQuantizer, learn_rounding, rounding_regulariser, temperature
from ptq4dm.method.calibration import Records
from ptq4dm.method.quant_model import act_quantizers, config_of, low_bit_layers, set_quantized
from ptq4dm.method.unit_cache import Place, UnitCache, cache_bytes, check_room, traced_units, unit_cache

BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock")
CHECK_EVERY = 100


@dataclass(frozen=True)
class Settings:
    """Of either stage: how long, on what, and where inputs and targets are kept.

    Args:
        iterations: Adam steps of each unit. batch_size: records of each, drawn without replacement within a batch.
        lr: Adam's learning rate. power: p of the loss.
        quantized_inputs: a unit's inputs are those of the network as quantised so far, not of the float one.
        seed: of the draws; those of a unit depend on it and on the unit's name alone.
        cache: `device` is the network's, `host` its machine's memory, `disk` a file in the store.
        half_cache: keep bfloat16 instead of float32.

    Raises:
        UserError: a count below 1, or an unknown place.
    """

    iterations: int
    batch_size: int
    lr: float
    power: float
    quantized_inputs: bool
    seed: int = 0
    cache: Place = "host"
    half_cache: bool = False

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch_size < 1:
            raise UserError(f"{self.iterations} iterations of {self.batch_size} records; both are at least 1")
        if self.cache not in ("device", "host", "disk"):
            raise UserError(f"cache {self.cache!r}; it is one of device, host, disk")

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of what is kept."""
        return torch.bfloat16 if self.half_cache else torch.float32


@dataclass(frozen=True)
class WeightSettings(Settings):
    """Of the weights' rounding; constant learning rate.

    Args:
        rounding_weight: lambda, before the sum of the regulariser.
        start_b, end_b, warmup: its exponent, see `adaround.temperature`; it is off during the warm-up.
    """

    iterations: int = 10_000
    batch_size: int = 8
    lr: float = 1e-3
    power: float = 2.0
    quantized_inputs: bool = True
    rounding_weight: float = 0.01
    start_b: float = 20.0
    end_b: float = 2.0
    warmup: float = 0.2


@dataclass(frozen=True)
class StepSettings(Settings):
    """Of the activations' steps; cosine learning rate down to 0."""

    iterations: int = 5_000
    batch_size: int = 16
    lr: float = 4e-4
    power: float = 2.4
    quantized_inputs: bool = False


@dataclass(frozen=True)
class UnitResult:
    """Of one unit: the loss of its first and last batch, without the regulariser."""

    name: str
    first_loss: float
    last_loss: float


Batches = Callable[[str], Iterator[Tensor]]
"""Unit -> for each iteration the drawn records (batch,)."""


def unit_names(unet: nn.Module) -> list[str]:
    """The units in module order: blocks with a low-bit layer, and low-bit layers outside of blocks."""
    layers = list(low_bit_layers(unet))
    blocks = [name for name, module in unet.named_modules() if type(module).__name__ in BLOCKS]
    found = [next((block for block in blocks if layer.startswith(f"{block}.")), layer) for layer in layers]
    return list(dict.fromkeys(found))


def estimate_cache_bytes(unet: nn.Module, records: Records, settings: Settings) -> int:
    """The most memory that the cache of either stage takes, from one pass over one record."""
    return cache_bytes(traced_units(unet, unit_names(unet), records), len(records), settings.cache_dtype)


def reconstruction_loss(out: Tensor, target: Tensor, power: float) -> Tensor:
    """`|out - target| ** power`, summed over dimension 1 and averaged over all others."""
    return (out - target).abs().pow(power).sum(1).mean()


@dataclass(frozen=True)
class Progress:
    """Who is told while it runs.

    Args:
        on_unit: of each finished unit: its result, its number from 1, how many there are.
        advance: of iterations, those of units that the folder has included.
    """

    on_unit: Callable[[UnitResult, int, int], None] = lambda result, number, total: None
    advance: Callable[[int], None] = lambda iterations: None


def reconstruct_weights(
    unet: nn.Module,
    records: Records,
    settings: WeightSettings | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
    units: Sequence[str] | None = None,
    batches: Batches | None = None,
) -> list[UnitResult]:
    """Learns the rounding of all low-bit weights, in the order in which a forward pass reaches them.

    A unit gets the inputs that it has where all weights are quantised (those of finished units as learned, the others
    to the nearest step) and the targets of the float network; activations are float. The network is left with quantised
    weights and float activations.

    Args:
        unet: quantised, with weight ranges.
        records: all that batches are drawn from.
        store: folder of the finished units.
        units, batches: others than the method's.

    Raises:
        UserError: fewer records than a batch; a cache that does not fit; a loss that is not finite; a folder made with
            other settings, weights or records.
    """
    stage = _Rounding(unet, settings or WeightSettings())
    return _run(stage, unet, records, store, progress or Progress(), units, batches)


def learn_steps(
    unet: nn.Module,
    records: Records,
    settings: StepSettings | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
    units: Sequence[str] | None = None,
    batches: Batches | None = None,
) -> list[UnitResult]:
    """Learns the steps of activations in each unit, from the float network's inputs to its targets.

    Weights are quantised as they are; zero points stay. The network is left with weights and activations quantised.
    Arguments and errors are those of `reconstruct_weights`; the ranges of activations are known.
    """
    stage = _Steps(unet, settings or StepSettings())
    return _run(stage, unet, records, store, progress or Progress(), units, batches)


class _Rounding:
    """The stage of the weights."""

    name = "weights"
    activations = False

    def __init__(self, unet: nn.Module, settings: WeightSettings) -> None:
        self.unet, self.settings = unet, settings

    def parameters(self, unit: str) -> dict[str, nn.Parameter]:
        layers = {name: layer for name, layer in low_bit_layers(self.unet).items() if _within(name, unit)}
        return {f"{q.name}.alpha": q.alpha for layer in layers.values() for q in learn_rounding(layer)}

    def soften(self, unit: str, soft: bool) -> None:
        for module in self.unet.get_submodule(unit).modules():
            if isinstance(module, AdaRoundQuantizer):
                module.soft = soft

    def schedule(self, optimizer: torch.optim.Optimizer) -> LRScheduler | None:
        return None

    def penalty(self, parameters: Iterable[Tensor], iteration: int) -> Tensor | float:
        s = self.settings
        if iteration < s.warmup * s.iterations:
            return 0.0
        b = temperature(iteration, s.iterations, s.warmup, s.start_b, s.end_b)
        return s.rounding_weight * sum(rounding_regulariser(alpha, b) for alpha in parameters)


class _Steps:
    """The stage of the activations."""

    name = "activations"
    activations = True

    def __init__(self, unet: nn.Module, settings: StepSettings) -> None:
        self.unet, self.settings = unet, settings

    def parameters(self, unit: str) -> dict[str, nn.Parameter]:
        found = act_quantizers(self.unet).items()
        return {f"{name}.delta": cast(nn.Parameter, q.delta) for name, q in found if _within(name, unit)}

    def soften(self, unit: str, soft: bool) -> None:
        pass  # a step is as hard while it is learned as afterwards

    def schedule(self, optimizer: torch.optim.Optimizer) -> LRScheduler | None:
        return CosineAnnealingLR(optimizer, T_max=self.settings.iterations)

    def penalty(self, parameters: Iterable[Tensor], iteration: int) -> Tensor | float:
        return 0.0


def _within(name: str, unit: str) -> bool:
    return name == unit or name.startswith(f"{unit}.")


def _run(
    stage: _Rounding | _Steps,
    unet: nn.Module,
    records: Records,
    store: Path | None,
    progress: Progress,
    units: Sequence[str] | None,
    batches: Batches | None,
) -> list[UnitResult]:
    settings = stage.settings
    if len(records) < settings.batch_size:
        raise UserError(f"{len(records)} calibration records; a batch of the reconstruction has {settings.batch_size}")
    if not all(q.initialised for q in act_quantizers(unet).values()) and stage.activations:
        raise UserError("ranges of activations are unknown; initialise_activation_ranges takes them first")
    if settings.cache == "disk" and store is None:
        raise UserError("a cache on disk lies in the folder of the units, and none is given")
    unet.eval()
    device = next(unet.parameters()).device
    set_quantized(unet, weights=False, activations=False)
    traced = traced_units(unet, list(units or unit_names(unet)), records)
    check_room(cache_bytes(traced, len(records), settings.cache_dtype), settings.cache, device, store)
    mark = _mark(stage, unet, records)
    draw = batches or _draws(len(records), settings)
    if store is not None:
        store.mkdir(parents=True, exist_ok=True)
        remove_stale_temporaries(store)
    results = []
    with _frozen(unet):
        for number, unit in enumerate((unit.name for unit in traced), 1):
            parameters = stage.parameters(unit)
            path = store / f"{stage.name}-{number:03d}-{unit}.safetensors" if store is not None else None
            if path is not None and path.exists():
                result = _restored(path, unit, parameters, mark)
                progress.advance(settings.iterations)
            else:
                with unit_cache(settings.cache, settings.cache_dtype, device, store) as cache:
                    set_quantized(unet, weights=False, activations=False)
                    cache.fill(unet, unit, records, inputs=not settings.quantized_inputs, target=True)
                    set_quantized(unet, weights=True, activations=stage.activations)
                    if settings.quantized_inputs:
                        cache.fill(unet, unit, records, inputs=True, target=False)
                    result = _fit(stage, unet, unit, parameters, cache, draw(unit), progress)
                if path is not None:
                    about = {"mark": mark, "result": json.dumps(dataclasses.asdict(result))}
                    save_weights(path, parameters, about)
            results.append(result)
            progress.on_unit(result, number, len(traced))
    set_quantized(unet, weights=True, activations=stage.activations)
    return results


def _fit(
    stage: _Rounding | _Steps,
    unet: nn.Module,
    unit: str,
    parameters: dict[str, nn.Parameter],
    cache: UnitCache,
    batches: Iterator[Tensor],
    progress: Progress,
) -> UnitResult:
    settings, module = stage.settings, unet.get_submodule(unit)
    learned = list(parameters.values())
    optimizer = torch.optim.Adam(learned, lr=settings.lr)
    schedule = stage.schedule(optimizer)
    first = last = torch.zeros(())
    for parameter in learned:
        parameter.requires_grad_(True)
    stage.soften(unit, True)
    try:
        for iteration in range(1, settings.iterations + 1):
            index = next(batches)
            args, named = cache.call(index)
            out = module(*args, **named)
            loss = reconstruction_loss(out if isinstance(out, Tensor) else out[0], cache.target(index), settings.power)
            optimizer.zero_grad()
            (loss + stage.penalty(learned, iteration)).backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            last = loss.detach()
            first = last if iteration == 1 else first
            if (iteration % CHECK_EVERY == 0 or iteration == settings.iterations) and not _finite(last, learned):
                raise UserError(
                    f"the loss of {unit} is not finite by iteration {iteration} (learning rate {settings.lr:.3g}); "
                    "units before it are kept; try a lower learning rate"
                )
            progress.advance(1)
    finally:
        stage.soften(unit, False)
        for parameter in learned:
            parameter.requires_grad_(False)
            parameter.grad = None
    return UnitResult(unit, first.item(), last.item())


def _finite(loss: Tensor, parameters: list[nn.Parameter]) -> bool:
    return bool(loss.isfinite()) and all(bool(parameter.isfinite().all()) for parameter in parameters)


def _draws(total: int, settings: Settings) -> Batches:
    """A new permutation for each iteration, from a generator of the unit's own."""

    def draw(unit: str) -> Iterator[Tensor]:
        digest = hashlib.sha256(f"{settings.seed} {unit}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        while True:
            yield torch.randperm(total, generator=generator)[: settings.batch_size]

    return draw


@contextmanager
def _frozen(unet: nn.Module) -> Iterator[None]:
    """Within the block no parameter has a gradient but those that are learned."""
    before = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    unet.requires_grad_(False)
    try:
        yield
    finally:
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(name in before)


def _mark(stage: _Rounding | _Steps, unet: nn.Module, records: Records) -> str:
    """Twenty digits that change with what the result of a stage depends on; where a cache lies does not count.

    Ranges are left out: they follow from the rest, but for the last bit that another number of threads gives.
    """
    settings = {name: value for name, value in dataclasses.asdict(stage.settings).items() if name != "cache"}
    digest = hashlib.sha256(f"{stage.name} {sorted(settings.items())} {config_of(unet)}".encode())
    if stage.activations:
        digest.update(bytes(quantizer.bits for quantizer in act_quantizers(unet).values()))
    counts = (".alpha",) if stage.activations else ()
    state = {name: v for name, v in unet.state_dict().items() if "quantizer" not in name or name.endswith(counts)}
    for name, tensor in [*state.items(), *records.tensors().items()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:20]


@torch.no_grad()
def _restored(path: Path, unit: str, parameters: dict[str, nn.Parameter], mark: str) -> UnitResult:
    tensors, about = read_safetensors(path)
    fits = tensors.keys() == parameters.keys() and all(tensors[n].shape == p.shape for n, p in parameters.items())
    if about.get("mark") != mark or not fits:
        raise UserError(f"{path} was made with other settings, weights or records; remove it, or take another folder")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
    return UnitResult(**json.loads(about["result"]))
