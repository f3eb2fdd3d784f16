"""Units, what reconstruction gains, how it goes on, what it keeps and where."""

import dataclasses
from pathlib import Path

import pytest
import torch
from made import tiny_unet
from torch import nn

from paperkit.errors import UserError
from ptq4dm.method import unit_cache
from ptq4dm.method.adaround import AdaRoundQuantizer, rectified_sigmoid
from ptq4dm.method.calibration import Records, predict
from ptq4dm.method.quant_model import (
    QuantConfig,
    initialise_activation_ranges,
    initialise_weight_ranges,
    quantize,
    set_activation_bits,
)
from ptq4dm.method.reconstruction import (
    Progress,
    StepSettings,
    UnitResult,
    WeightSettings,
    estimate_cache_bytes,
    learn_steps,
    reconstruct_weights,
    unit_names,
)
from ptq4dm.method.unit_cache import Place, traced_units

WEIGHTS = WeightSettings(iterations=6, batch_size=4)
STEPS = StepSettings(iterations=4, batch_size=4)


def records(count: int = 16) -> Records:
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(count, 3, 8, 8, generator=generator), torch.randint(0, 1000, (count,), generator=generator)
    return Records(x, t, torch.randn(count, 1, 12, generator=generator))


def ready() -> nn.Module:
    unet = quantize(tiny_unet(conditional=True), QuantConfig(weight_bits=3))
    initialise_weight_ranges(unet)
    return unet


def both_stages(store: Path | None, progress: Progress | None = None, **changed: object) -> nn.Module:
    unet = ready()
    reconstruct_weights(unet, records(), dataclasses.replace(WEIGHTS, **changed), store, progress)  # type: ignore[arg-type]
    initialise_activation_ranges(unet, records(), 8)
    learn_steps(unet, records(), dataclasses.replace(STEPS, **changed), store, progress)  # type: ignore[arg-type]
    return unet


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], Path]:
    store = tmp_path_factory.mktemp("units")
    return both_stages(store).state_dict(), store


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_units_are_blocks_and_lone_layers_in_the_order_of_a_pass() -> None:
    unet = ready()
    order = [unit.name for unit in traced_units(unet, unit_names(unet), records())]
    assert order[0] == "time_embedding.linear_2" and set(order) == set(unit_names(unet))
    assert order.index("down_blocks.1.resnets.0") < order.index("mid_block.resnets.0")
    assert order.index("mid_block.resnets.1") < order.index("up_blocks.0.resnets.0")
    mid = [name for name in order if name.startswith("mid_block.attentions.0.")]
    assert [name.rpartition("attentions.0.")[2] for name in mid] == ["proj_in", "transformer_blocks.0", "proj_out"]
    assert not {"conv_in", "conv_out", "time_embedding.linear_1"} & set(order)


def test_reconstruction_brings_each_unit_nearer_to_the_float_one() -> None:
    unet, given = ready(), records(32)
    results = reconstruct_weights(unet, given, WeightSettings(iterations=50, batch_size=8, lr=2e-2))
    better = [result.last_loss < result.first_loss for result in results]
    assert sum(better) >= 0.8 * len(better)
    with torch.no_grad():
        exact = predict(tiny_unet(conditional=True), given)
        nearest = quantize(tiny_unet(conditional=True), QuantConfig(weight_bits=3))
        initialise_weight_ranges(nearest)
        for layer in (m for m in nearest.modules() if hasattr(m, "weights_quantized")):
            layer.weights_quantized = True
        errors = [(predict(network, given) - exact).pow(2).mean() for network in (unet, nearest)]
    assert errors[0] < errors[1]
    quantizers = [module for module in unet.modules() if isinstance(module, AdaRoundQuantizer)]
    assert quantizers and not any(quantizer.soft or quantizer.alpha.requires_grad for quantizer in quantizers)
    decided = torch.cat([(2 * rectified_sigmoid(q.alpha) - 1).abs().flatten() for q in quantizers])
    assert decided.mean() > 0.5


def test_steps_move_and_zero_points_stay(uninterrupted: tuple[dict[str, torch.Tensor], Path]) -> None:
    unet = ready()
    reconstruct_weights(unet, records(), WEIGHTS)
    initialise_activation_ranges(unet, records(), 8)
    after = uninterrupted[0]
    for name, value in unet.state_dict().items():
        if "act_quantizer" not in name or name.startswith(("conv_", "time_embedding.linear_1")):
            assert torch.equal(value, after[name]), name
        else:
            assert torch.equal(value, after[name]) == name.endswith("zero_point"), name


@pytest.mark.parametrize("at", [1, 5, 12])
def test_it_goes_on_to_the_same_bits(
    at: int, uninterrupted: tuple[dict[str, torch.Tensor], Path], tmp_path: Path
) -> None:
    seen: list[str] = []

    def kill(result: UnitResult, number: int, total: int) -> None:
        seen.append(result.name)
        if len(seen) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        both_stages(tmp_path, Progress(on_unit=kill))
    (tmp_path / "weights-099-unit.safetensors.tmp-999999").write_bytes(b"half")
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert len(kept) == at
    told: list[int] = []
    assert same(both_stages(tmp_path, Progress(advance=told.append)).state_dict(), uninterrupted[0])
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    units = len(unit_names(ready()))
    assert sum(told) == units * (WEIGHTS.iterations + STEPS.iterations)
    assert not list(tmp_path.glob("*.tmp-*"))


@pytest.mark.parametrize("place", ["device", "disk"])
def test_places_of_the_cache_give_the_same(
    place: Place, uninterrupted: tuple[dict[str, torch.Tensor], Path], tmp_path: Path
) -> None:
    assert same(both_stages(tmp_path, cache=place).state_dict(), uninterrupted[0])
    assert not list(tmp_path.glob("cache-*"))


def test_half_the_memory(uninterrupted: tuple[dict[str, torch.Tensor], Path]) -> None:
    half = both_stages(None, half_cache=True).state_dict()
    assert not same(half, uninterrupted[0])
    for name, value in uninterrupted[0].items():
        torch.testing.assert_close(half[name], value, rtol=0.2, atol=0.05)
    unet, given = ready(), records()
    whole = estimate_cache_bytes(unet, given, WEIGHTS)
    assert whole == 2 * estimate_cache_bytes(unet, given, dataclasses.replace(WEIGHTS, half_cache=True))
    largest = max(unit.numbers for unit in traced_units(unet, unit_names(unet), given))
    assert whole == largest * len(given) * 4 and largest >= 8 * 64 * 3


@pytest.mark.parametrize("change", ["settings", "records", "weights"])
def test_a_folder_of_something_else_is_refused(
    change: str, uninterrupted: tuple[dict[str, torch.Tensor], Path]
) -> None:
    unet, given, settings = ready(), records(), WEIGHTS
    if change == "settings":
        settings = dataclasses.replace(settings, lr=0.1)
    elif change == "records":
        given.x[0] += 1
    else:
        with torch.no_grad():
            unet.get_parameter("conv_in.weight").mul_(1.01)
    with pytest.raises(UserError, match="other settings, weights or records"):
        reconstruct_weights(unet, given, settings, uninterrupted[1])


def test_steps_of_other_bits_are_refused(uninterrupted: tuple[dict[str, torch.Tensor], Path]) -> None:
    unet = ready()
    reconstruct_weights(unet, records(), WEIGHTS, uninterrupted[1])
    set_activation_bits(unet, 4)
    initialise_activation_ranges(unet, records(), 8)
    with pytest.raises(UserError, match="other settings, weights or records"):
        learn_steps(unet, records(), STEPS, uninterrupted[1])


def test_impossible_reconstructions_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet, given = ready(), records()
    with pytest.raises(UserError, match="7 calibration records; a batch of the reconstruction has 8"):
        reconstruct_weights(unet, given[:7], WeightSettings(iterations=1))
    with pytest.raises(UserError, match="0 iterations"):
        WeightSettings(iterations=0)
    with pytest.raises(UserError, match="one of device, host, disk"):
        WeightSettings(cache="cloud")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="none is given"):
        reconstruct_weights(unet, given, dataclasses.replace(WEIGHTS, cache="disk"))
    with pytest.raises(UserError, match="ranges of activations are unknown"):
        learn_steps(unet, given, STEPS)
    with pytest.raises(UserError, match=r"not finite by iteration 6 .*try a lower learning rate"):
        reconstruct_weights(unet, given, dataclasses.replace(WEIGHTS, lr=float("inf")), tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    monkeypatch.setattr(unit_cache, "_free_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"keeps up to .* GB of inputs and outputs on host"):
        reconstruct_weights(ready(), given, WEIGHTS)
