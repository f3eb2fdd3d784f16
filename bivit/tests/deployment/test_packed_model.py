"""`pack` gives the same logits from one bit per weight, on every tier; the packed file gives the network back."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from made import bivit, pictures, small, small_network
from timm.models.nest import Nest
from torch import Tensor, nn

from bivit.deployment import kernels
from bivit.deployment.packed_file import file_sizes, read_packed, write_packed
from bivit.deployment.packed_linear import PackedLinear
from bivit.deployment.packed_model import pack, packing
from bivit.method.binary_linear import BinaryLinear
from bivit.models.architectures import build
from bivit.models.binarize import METHODS, BinaryConfig, binarize
from bivit.models.classifier import save_pretrained
from paperkit.errors import UserError
from paperkit.files.weights import read_safetensors, save_weights

W1A1 = replace(METHODS["bivit"], mlp="w1a1")
NAMES = ["deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "nest_tiny_jx", "pvt_v2_b1"]


def network(name: str, config: BinaryConfig = W1A1) -> nn.Module:
    """With biases, so that no output is exactly 0 but by counting."""
    if name.startswith("nest"):  # timm's builders fix its widths
        torch.manual_seed(0)
        model = Nest(32, 3, 2, 2, (12, 16), (3, 2), (1, 2), 10, drop_path_rate=0.0).eval()
        binarize(model, config)
    else:
        model = small_network(name, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("bias") or "position" in key:
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return model


def pictures_for(name: str) -> Tensor:
    return pictures(2, 64 if name.startswith("pvt") else 32)


@torch.inference_mode()
def same_logits(packed: nn.Module, model: nn.Module, x: Tensor) -> None:
    expected = model(x)
    torch.testing.assert_close(packed(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("tier", kernels.available())
@pytest.mark.parametrize("name", NAMES)
def test_same_logits(name: str, tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(name)
    packed = pack(model)
    monkeypatch.setenv("BIVIT_TIER", tier)
    same_logits(packed, model, pictures_for(name))
    assert any(isinstance(part, BinaryLinear) for part in model.modules())  # the network itself stays


CONFIGS = {
    "W1A32": METHODS["bivit"],
    "BiBERT": replace(METHODS["bibert"], mlp="w1a1"),
    "naive": replace(METHODS["naive"], mlp="w1a1"),
    "plus": replace(W1A1, zero="plus"),
    "MLP float": replace(W1A1, mlp="float"),
    "attention float": replace(W1A1, attention="float"),
    "count and v": replace(W1A1, normalize="count", v_scale=True),
    "half": replace(W1A1, depth=0.5),
    "beta": replace(W1A1, beta=0.4),
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", NAMES[:3])
def test_every_kind_of_network(name: str, config: str) -> None:
    model = network(name, CONFIGS[config])
    same_logits(pack(model), model, pictures_for(name))


def test_padded_and_shifted_windows() -> None:
    """Maps that the window does not divide; what is padded is 0, and its q, k, v come from the biases."""
    options: dict[str, Any] = {**small("swin"), "img_size": 40, "window_size": 3}
    torch.manual_seed(0)
    model = build("swin_tiny_patch4_window7_224", 10, W1A1, options).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("bias") or "position" in key:
                value.normal_(std=0.1)
    same_logits(pack(model), model, pictures(2, 40))


def test_layer_scale_registers_and_a_mask() -> None:
    torch.manual_seed(0)
    sizes = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3)
    model = timm.create_model("vit_small_patch16_224", init_values=0.3, reg_tokens=2, num_classes=5, **sizes).eval()
    binarize(model, W1A1)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith(("bias", "gamma")):
                value.normal_(std=0.1)
    packed = pack(model)
    same_logits(packed, model, pictures())
    with torch.inference_mode():
        x, mask = torch.randn(1, 19, 24), torch.rand(19, 19) < 0.6
        torch.testing.assert_close(packed.blocks[0](x, attn_mask=mask), model.blocks[0](x, attn_mask=mask))


def test_a_packed_network_is_apart_from_its_model() -> None:
    """Trainable parameters leave no graph in it: it can be copied, and does not keep the float weights."""
    packed, x = pack(network(NAMES[0])), pictures()
    assert not packed(x).requires_grad
    assert torch.equal(copy.deepcopy(packed)(x), packed(x))


def test_the_report() -> None:
    model = network(NAMES[0])
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[3] = 0.25
    report = packing(pack(model))
    assert report.zero_rules["blocks.0.attn.proj"] == "ternary" and report.zero_rules["blocks.0.mlp.fc2"] == "exact"
    assert report.constant_rows == {"blocks.0.mlp.fc1": 1} and len(report.on_bits) == 4 and not report.floats
    assert "1 rows of constant weights in blocks.0.mlp.fc1" in str(report)
    assert "4 linears with float inputs" in str(packing(pack(network(NAMES[0], METHODS["bivit"]))))


def test_what_is_not_finite_is_not_hidden() -> None:
    """A NaN in one picture makes its logits NaN, and no other's."""
    packed, x = pack(network(NAMES[0])), pictures(2)
    x[1, 0, 3, 3] = float("nan")
    with torch.inference_mode():
        out = packed(x)
    assert bool(out[0].isfinite().all()) and bool(out[1].isnan().all())


def test_what_cannot_be_packed() -> None:
    with pytest.raises(UserError, match=r"^the network has no binary linear"):
        pack(nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"^the network is packed already"):
        pack(pack(network(NAMES[0])))
    with pytest.raises(UserError, match=r"^blocks\.0\.attn\.qkv cannot be packed: it has inputs 'elastic'"):
        pack(small_network(NAMES[0], METHODS["bit"]))


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", ["fp16", "fp32"])
@pytest.mark.parametrize("name", [NAMES[0], NAMES[1], NAMES[3]])
def test_the_file_gives_the_network_back(name: str, rest: Any, tmp_path: Path) -> None:
    packed, x = pack(network(name)), pictures_for(name)
    write_packed(tmp_path / "model.safetensors", packed, name, W1A1, small(name), rest)
    again = read_packed(tmp_path, name)
    with torch.inference_mode():
        if rest == "fp32":
            assert torch.equal(again(x), packed(x))
    for key, value in packed.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=1e-3, atol=1e-6)
    assert packing(again) == packing(packed)


def altered(path: Path, metadata: dict[str, str] | None = None, state: dict[str, Tensor] | None = None) -> Path:
    old, told = read_safetensors(path)
    save_weights(path.with_name("altered.safetensors"), {**old, **(state or {})}, {**told, **(metadata or {})})
    return path.with_name("altered.safetensors")


def test_files_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    path, fc1 = tmp_path / "packed.safetensors", "blocks.0.mlp.fc1"
    write_packed(path, pack(network(NAMES[0])), NAMES[0], W1A1, small("deit"))
    state, told = read_safetensors(path)
    wide = {**json.loads(told["in_features"]), fc1: 40}
    rules = json.loads(told["zero_rule"])
    bits = state[f"{fc1}.weight_bits"].clone()
    bits[0, 4] = 1
    twins: dict[str, tuple[dict[str, str], dict[str, Tensor]]] = {
        "packed format version 7; 1 is read": ({"version": "7"}, {}),
        "is no packed file": ({"format": "pt"}, {}),
        f"{fc1} has 40 inputs there and 24 in a deit_tiny": ({"in_features": json.dumps(wide)}, {}),
        f"zero rule ones of {fc1} does not exist": ({"zero_rule": json.dumps({**rules, fc1: "ones"})}, {}),
        f"{fc1} has zero rule 'plus', and its network": ({"zero_rule": json.dumps({**rules, fc1: "plus"})}, {}),
        "timm has no network 'deit_medium'": ({"architecture": "deit_medium"}, {}),
        "its metadata has no options": ({"options": "{"}, {}),
        "bits set beyond its 24 inputs": ({}, {f"{fc1}.weight_bits": bits}),
        "weights that are no numbers": ({}, {f"{fc1}.scale": state[f"{fc1}.scale"] * float("nan")}),
        "blocks.0.norm1.weight": ({}, {"blocks.0.norm1.weight": torch.ones(3)}),
    }
    for says, (metadata, tensors) in twins.items():
        with pytest.raises(UserError, match=says):
            read_packed(altered(path, metadata, tensors))
    sizes = {
        "has 24 inputs there and 48 in a deit_tiny": {"embed_dim": 48},
        "describes a network of [0-9]{12} numbers": {"img_size": 10**6},
        "options name 10000000 blocks": {"depth": 10**7},
    }
    for says, other in sizes.items():
        with pytest.raises(UserError, match=says):
            read_packed(altered(path, {"options": json.dumps({**small("deit"), **other})}))
    with pytest.raises(UserError, match=r"holds a packed deit_tiny_patch16_224, not a deit_base_patch16_224"):
        read_packed(path, "deit_base_patch16_224")


def test_bytes_of_deit_small(tmp_path: Path) -> None:
    """The file is 1/20 of float32 with its rest in fp16, 1/14 in fp32; the binary part alone 1/28."""
    model = build("deit_small_patch16_224", 1000, W1A1)
    whole = 4 * sum(p.numel() for key, p in model.named_parameters() if "scaling_factor" not in key)
    packed = pack(model)
    for rest, aim in (("fp16", 20), ("fp32", 14)):
        file = tmp_path / f"{rest}.safetensors"
        write_packed(file, packed, "deit_small_patch16_224", W1A1, None, rest)  # type: ignore[arg-type]
        assert whole / file.stat().st_size > aim
    part = 4 * sum(p.numel() for layer in model.modules() if isinstance(layer, BinaryLinear)
                   for p in (layer.weight, layer.bias))  # fmt: skip
    own = sum(file_sizes(layer)["fp32"] for layer in packed.modules() if isinstance(layer, PackedLinear))
    assert part / own > 28


# --- the verbs -------------------------------------------------------------------------------------------------------


def test_pack_and_size(tmp_path: Path) -> None:
    folder, file = tmp_path / "model", tmp_path / "packed.safetensors"
    save_pretrained(network(NAMES[0]), folder, NAMES[0], W1A1, small("deit"))
    done = bivit.here("pack", folder, "--output", file)
    assert "on bits (tier " in done.out and "8 packed linears (zero rule: 2 ternary, 6 exact)" in done.out
    assert json.loads(file.with_suffix(".json").read_text())["bytes"] == file.stat().st_size
    assert "is packed already" in bivit.refused("pack", file, "--output", tmp_path / "b.safetensors")
    sizes = bivit.here("size", folder, "--size", "32", "--layers", "--output", tmp_path / "size.json")
    assert "popcounts" in sizes.out and json.loads((tmp_path / "size.json").read_text())["popcounts"] > 0
    assert "is neither a network of timm's nor a file" in bivit.refused("size", "nothing")
