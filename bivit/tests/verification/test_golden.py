"""The authors' tensors: every kind recomputes, and every altered result is noticed."""

import json
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from bivit.method.binary_linear import RULES, BinaryLinear
from bivit.method.distillation import distribution_loss
from bivit.models.binarize import METHODS, binarize
from bivit.verification.kinds import KINDS
from paperkit.testing.golden import (
    changed,
    check_altered_results_fail,
    check_unknown_option_is_refused,
    check_verifies,
    each_golden,
    read_golden,
    verified,
)

GOLDEN = Path(__file__).parents[1] / "golden"


@each_golden(GOLDEN)
def test_matches_reference(path: Path) -> None:
    check_verifies(path, KINDS)


@each_golden(GOLDEN, "*.safetensors")
def test_altered_result_fails(path: Path, tmp_path: Path) -> None:
    check_altered_results_fail(path, KINDS, tmp_path, by=2e-3)


@each_golden(GOLDEN, "*.safetensors")
def test_unknown_option_is_refused(path: Path, tmp_path: Path) -> None:
    check_unknown_option_is_refused(path, KINDS, tmp_path)


@pytest.mark.parametrize(
    ("file", "option", "value", "message"),
    [
        ("quantizer_sign", "quantizer", "step", "known: sign, bool"),
        ("binary_linear_ste", "class", "Linear", "known: BinaryLinear_STE"),
        ("sab_softmax", "beta", 1.5, "outside (0, 1]"),
        ("sab_softmax", "backward", "none", "known: softmax, direct"),
        ("elastic_signed", "bits", 2, "only 1 bit"),
        ("deit_stage1", "mlp", "Mlp", "known: BiMlp"),
        ("deit_stage1", "depth", 100_000, "the most that this kind takes"),
    ],
)
def test_impossible_option_is_one_line(file: str, option: str, value: object, message: str, tmp_path: Path) -> None:
    path = changed(GOLDEN / f"{file}.safetensors", tmp_path, config=lambda c: c.update({option: value}))
    good, printed = verified(path, KINDS)
    assert not good and message in printed


def test_ledger_of_other_models(tmp_path: Path) -> None:
    """A changed integer is noticed; a name that is no model of the family is not built."""
    content = json.loads((GOLDEN / "ops_ledger.json").read_text())
    row = content["swin_tiny_patch4_window7_224"]
    path = tmp_path / "ops_ledger_one.json"
    row["macs"]["attention_matmul"] += 1
    path.write_text(json.dumps({"swin_tiny_patch4_window7_224": row}))
    good, printed = verified(path, KINDS)
    assert not good and "FAIL  config.swin_tiny_patch4_window7_224.macs.attention_matmul" in printed
    path.write_text(json.dumps({"resnet18": row}))
    good, printed = verified(path, KINDS)
    assert not good and "no model 'resnet18'" in printed


def write_network(path: Path, kind: str, model: nn.Module, config: dict[str, object], x: torch.Tensor) -> Path:
    """A reference file of a network, made by the float32 pass that users run; with biases, no sign is a tie."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_(0, 0.1)
    x = x.clone().requires_grad_()
    logits = model.eval()(x)
    teacher = torch.randn(logits.shape)
    loss = distribution_loss(logits, teacher)
    loss.backward()
    tensors = {f"sd.{name}": value for name, value in model.state_dict().items()}
    tensors |= {"in.x": x.detach(), "in.teacher_logits": teacher, "out.logits": logits, "out.loss": loss.reshape(1)}
    tensors |= {f"grad.{name}": value.grad for name, value in model.named_parameters()} | {"grad.x": x.grad}
    kept = {name: value.detach().clone() for name, value in tensors.items()}
    save_file(kept, path, {"kind": kind, "config": json.dumps(config)})
    return path


NORM = partial(nn.LayerNorm, eps=1e-5)
CLASSES = {"bivit": ("BiAttention_SAB", "BiMlp_adapscaling_1w32a"), "bibert": ("BiAttention_baseline", "BiMlp_1w32a")}


@pytest.mark.parametrize("method", ["bivit", "bibert"])
@pytest.mark.parametrize(
    ("img", "window", "depths", "heads"),
    [(36, 4, [1, 2], [2, 3]), (16, 8, [2], [3]), (20, 16, [1], [1])],
    ids=["padding", "window is the map", "window exceeds the map"],
)
def test_swin_of_other_sizes(
    method: str, img: int, window: int, depths: list[int], heads: list[int], tmp_path: Path
) -> None:
    """Float32 and the float64 of `verify` agree where windows are padded, equal the map or exceed it."""
    torch.manual_seed(3)
    model = timm.models.swin_transformer.SwinTransformer(
        img, 2, embed_dim=12, depths=depths, num_heads=heads, window_size=window, num_classes=7, mlp_ratio=2,
        drop_path_rate=0.0, norm_layer=NORM,
    )  # fmt: skip
    binarize(model, METHODS[method])
    attention, mlp = CLASSES[method]
    config = dict(img=img, patch=2, window=window, dim=12, depths=depths, heads=heads, mlp_ratio=2, classes=7)
    config |= dict(norm_eps=1e-5, attention=attention, mlp=mlp)
    path = write_network(tmp_path / "swin.safetensors", "swin_model", model, config, torch.randn(2, 3, img, img))
    check_verifies(path, KINDS)


def test_float32_forward_is_close() -> None:
    """`verify` works in float64; the float32 pass that users run keeps every bit and stays within 1e-5."""
    tensors, metadata = read_golden(GOLDEN / "deit_sab_w1a32.safetensors")
    c = json.loads(metadata["config"])
    model = timm.models.vision_transformer.VisionTransformer(
        c["img"], c["patch"], num_classes=c["classes"], embed_dim=c["dim"], depth=c["depth"], num_heads=c["heads"]
    )
    binarize(model, "bivit")
    model.load_state_dict({key[3:]: value for key, value in tensors.items() if key.startswith("sd.")})
    torch.testing.assert_close(model.eval()(tensors["in.x"]), tensors["out.logits"], rtol=0, atol=2e-5)


def test_odd_widths_and_one_token(tmp_path: Path) -> None:
    """A linear of 7 inputs with a constant row, on one token."""
    torch.manual_seed(0)
    layer = BinaryLinear(7, 3, RULES["mean"])
    with torch.no_grad():
        layer.weight[1] = 0.25
        layer.weight[2] *= 10
    x = torch.randn(1, 1, 7, requires_grad=True)
    y, cotangent = layer(x), torch.randn(1, 1, 3)
    (y * cotangent).sum().backward()
    assert y[0, 0, 1] == layer.bias[1]
    tensors = {"sd.weight": layer.weight, "sd.bias": layer.bias, "in.x": x, "in.cotangent": cotangent, "out.y": y}
    tensors |= {"grad.x": x.grad, "grad.weight": layer.weight.grad, "grad.bias": layer.bias.grad}
    tensors |= {"out.scale": layer.scale(), "out.weight_sign": layer.centred_weight().sign()}
    config = {"class": "BinaryLinear_STE", "in_features": 7, "out_features": 3}
    path = tmp_path / "linear.safetensors"
    kept = {name: value.detach().clone() for name, value in tensors.items()}
    save_file(kept, path, {"kind": "binary_linear", "config": json.dumps(config)})
    check_verifies(path, KINDS)
