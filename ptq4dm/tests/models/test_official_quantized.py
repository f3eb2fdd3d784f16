"""Files of the authors' quantisation scripts: the reference of a whole quantised U-Net, read and written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paperkit.errors import UserError
from paperkit.files.weights import read_safetensors
from ptq4dm.method.calibration import Records, predict
from ptq4dm.method.quant_model import QuantConfig, low_bit_layers, quant_layers, quantize
from ptq4dm.models.compvis import official_name
from ptq4dm.models.latent_diffusion import UNetOptions, build_unet
from ptq4dm.models.official_quantized import (
    load_quantized,
    quantized_state,
    read_inputs,
    read_pairs,
    read_quantized,
    write_inputs,
    write_pairs,
    write_quantized,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "quant_unet.safetensors"


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, metadata = read_safetensors(GOLDEN)
    return tensors, json.loads(metadata["config"])


def fresh(config: dict[str, Any]) -> Any:
    return build_unet(UNetOptions.of_official(config["official"], config["norm_num_groups"])).eval()


def zero_points(tensors: dict[str, Tensor], unet: Any) -> dict[str, Tensor]:
    names = quant_layers(quantize(unet, QuantConfig()))
    return {name: tensors[f"out.q.model.{official_name(unet, name)}.act_quantizer.zero_point"] for name in names}


def test_the_authors_file_gives_the_authors_output(golden: Any, tmp_path: Path) -> None:
    """Read with the zero points that the file lacks, computed as they did, and written as the same file.

    The stored reference has no alphas (they fill the file); the one with them is for `verify`.
    """
    tensors, config = golden
    state = {key.removeprefix("sd."): tensor for key, tensor in tensors.items() if key.startswith("sd.")}
    torch.save(state, tmp_path / "quantw4a8_ldm_brecq.pth")
    points = zero_points(tensors, fresh(config))
    unet = read_quantized(tmp_path / "quantw4a8_ldm_brecq.pth", fresh(config), QuantConfig(), zero_points=points)
    found = predict(unet, Records(tensors["in.x"], tensors["in.t"], tensors["in.context"])).detach()
    wanted = tensors["out.wa_nearest"]
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    write_quantized(tmp_path / "again.pth", unet)
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert again.keys() == state.keys() and all(torch.equal(again[key], state[key]) for key in state)
    alphas = {f"model.{official_name(unet, name)}.weight_quantizer.alpha": torch.randn_like(layer.weight)
              for name, layer in low_bit_layers(unet).items()}  # fmt: skip
    rounded = load_quantized(state | alphas, "made", fresh(config), QuantConfig(), zero_points=points)
    layer, alpha = rounded.time_embedding.linear_2, alphas["model.time_embed.2.weight_quantizer.alpha"]
    delta, zero_point = layer.weight_quantizer.delta, layer.weight_quantizer.zero_point
    codes = ((layer.weight / delta).floor() + (alpha >= 0) + zero_point).clamp(0, 15)
    assert torch.equal(layer.quantized_weight(), (codes - zero_point) * delta)
    again = quantized_state(rounded)
    assert again.keys() == (state | alphas).keys() and all(torch.equal(again[key], alphas[key]) for key in alphas)
    weights_only = quantized_state(unet, activations=False)
    assert weights_only.keys() == {key for key in state if not key.endswith("act_quantizer.delta")}


def test_ranges_from_calibration_records(golden: Any, tmp_path: Path) -> None:
    """Without zero points they come from records: the same, here, since the same records stand in the reference."""
    tensors, config = golden
    state = {key.removeprefix("sd."): tensor for key, tensor in tensors.items() if key.startswith("sd.")}
    torch.save(state, tmp_path / "q.pth")
    records = Records(*(tensors[f"in.{name}_init"].repeat(8, *[1] * (tensors[f"in.{name}_init"].dim() - 1))
                        for name in ("x", "t", "context")))  # fmt: skip
    unet = read_quantized(tmp_path / "q.pth", fresh(config), QuantConfig(), records)
    found = predict(unet, Records(tensors["in.x"], tensors["in.t"], tensors["in.context"])).detach()
    wanted = tensors["out.wa_nearest"]
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert torch.equal(unet.conv_in.act_quantizer.delta, state["model.input_blocks.0.0.act_quantizer.delta"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: None, "holds no zero points"),
        (lambda state: state.update(other=torch.zeros(2)), "without model."),
        (lambda state: state.pop("model.out.2.act_quantizer.delta"), "lacks the activation step of out.2"),
        (lambda state: state.update({"model.out.2.weight_quantizer.alpha": torch.zeros(2)}), "has shape"),
        (lambda state: state.update({"model.input_blocks.2.0.op.act_quantizer.delta": torch.ones(())}), "float"),
    ],
    ids=["no zero points", "other keys", "a step is missing", "alpha of another shape", "a layer that is left float"],
)
def test_files_that_do_not_fit(change: Any, message: str, golden: Any, tmp_path: Path) -> None:
    tensors, config = golden
    state = {key.removeprefix("sd."): tensor for key, tensor in tensors.items() if key.startswith("sd.")}
    change(state)
    torch.save(state, tmp_path / "q.pth")
    with pytest.raises(UserError, match=message):
        read_quantized(tmp_path / "q.pth", fresh(config), QuantConfig())


def test_inputs_and_pairs(tmp_path: Path) -> None:
    """Lists of tuples: guided batches of inputs, single pairs of predictions."""
    records = Records(torch.randn(6, 3, 4, 4), torch.arange(6), torch.randn(6, 1, 5))
    write_inputs(tmp_path / "imagenet_input_20steps.pth", records, 4)
    again = read_inputs(tmp_path / "imagenet_input_20steps.pth")
    assert all(torch.equal(again.tensors()[name], tensor) for name, tensor in records.tensors().items())
    eps, delta, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([1, 51, 1])
    write_pairs(tmp_path / "data_error_t.pth", eps, delta, t)
    assert all(
        torch.equal(a, b) for a, b in zip(read_pairs(tmp_path / "data_error_t.pth"), (eps, delta, t), strict=True)
    )
    torch.save({"x": eps}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="no list of 3-tuples"):
        read_inputs(tmp_path / "other.pth")


@pytest.mark.parametrize("step", [torch.ones(3), torch.zeros(())], ids=["three numbers", "zero"])
def test_steps_that_are_none(step: Tensor, golden: Any) -> None:
    tensors, config = golden
    state = {key.removeprefix("sd."): tensor for key, tensor in tensors.items() if key.startswith("sd.")}
    points = zero_points(tensors, fresh(config))
    state["model.out.2.act_quantizer.delta"] = step
    with pytest.raises(UserError, match=r"out\.2\.act_quantizer\.delta is"):
        load_quantized(state, "made", fresh(config), QuantConfig(), zero_points=points)
    with pytest.raises(UserError, match="no place for a shortcut split"):
        load_quantized(state, "made", fresh(config), QuantConfig(shortcut_split=True), zero_points=points)


def test_lists_whose_entries_do_not_fit_together(tmp_path: Path) -> None:
    torch.save([(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), 1), (torch.zeros(1, 3, 5, 5),) * 3], tmp_path / "a")
    with pytest.raises(UserError, match="fit together"):
        read_pairs(tmp_path / "a")
    torch.save([(torch.zeros(2, 3, 4, 4), torch.zeros(1), torch.zeros(2, 1, 5))], tmp_path / "b")
    with pytest.raises(UserError, match="2 of x and 1 of t"):
        read_inputs(tmp_path / "b")
