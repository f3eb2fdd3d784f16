"""timm's own entry points for the binary networks: its contract, walked once for each family."""

import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
from made import pictures, small
from timm.optim import create_optimizer_v2

from bivit.models.binarize import binary_layers
from bivit.models.names import ARCHITECTURES, VARIANTS
from paperkit.errors import UserError


@pytest.mark.parametrize("first", ["bivit", "timm", "bivit.models.architectures", "bivit.models.timm_models"])
def test_registers_in_either_import_order(first: str) -> None:
    count = len(ARCHITECTURES) * len(VARIANTS)
    code = f"import {first}; import bivit, timm; found = timm.list_models('*_bivit*') + timm.list_models('*_bibert*')"
    subprocess.run([sys.executable, "-c", f"{code}; assert len(found) == {count}, found"], check=True)


CONTRACT = [
    ("deit_tiny_patch16_224_bivit", (24, 24), 8),
    ("swin_tiny_patch4_window7_224_bivit_w1a1", (12, 24), 16),
    ("nest_tiny_jx_bibert", (96, 192, 384), 48),
    ("pvt_v2_b1_bibert_w1a1", (8, 16, 24, 32), 20),
]


@pytest.mark.parametrize(("name", "widths", "layers"), CONTRACT)
def test_model_contract(name: str, widths: tuple[int, ...], layers: int) -> None:
    options, images = small(name), pictures(size=64 if name.startswith("pvt") else 32)
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=10, **options).eval()
    assert len(binary_layers(model)) == layers
    features = model.forward_features(images)
    torch.testing.assert_close(model.forward_head(features), model(images))
    torch.manual_seed(0)
    indices = tuple(range(len(widths)))
    maps = timm.create_model(name, features_only=True, out_indices=indices, num_classes=10, **options).eval()
    assert tuple(maps.feature_info.channels()) == widths and len(binary_layers(maps)) == layers
    found = maps(images)
    assert [x.shape[-1] if name.startswith("swin") else x.shape[1] for x in found] == list(widths)
    model.reset_classifier(5)
    assert model(images).shape == (2, 5)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224_bivit", "swin_tiny_patch4_window7_224_bivit"])
def test_checkpointing_changes_no_gradient(name: str) -> None:
    torch.manual_seed(0)
    model, images, gradients = timm.create_model(name, num_classes=3, **small(name)), pictures(), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_weights_that_cannot_be_had_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **options: Any) -> None:
        raise OSError("no route\nto the hub")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    with pytest.raises(UserError, match="timm gave no weights of deit_tiny_patch16_224: no route to the hub; load a"):
        timm.create_model("deit_tiny_patch16_224_bivit", pretrained=True)


def test_help_answers_without_torch() -> None:
    code = (
        "import sys; sys.argv = ['bivit', '--help']; import bivit.cli\ntry: bivit.cli.main()\nexcept SystemExit: pass"
    )
    words = [sys.executable, "-c", f"{code}\nassert 'torch' not in sys.modules"]
    assert b"convert" in subprocess.run(words, check=True, capture_output=True).stdout
