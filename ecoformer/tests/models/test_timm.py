"""timm's own entry points, and its networks converted."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from made import TINY
from timm.optim import create_optimizer_v2

import ecoformer
from ecoformer.method.attention import EcoFormerAttention, fit_hashes
from ecoformer.models.pvt import PVTv2
from paperkit.errors import UserError

SMALL = {key: TINY[key] for key in ("embed_dims", "num_heads", "mlp_ratios", "depths", "num_classes")}
ECO = {**SMALL, "nbits": 8, "supports": 4, "fit": dict(topk=2, iterations=2)}


@pytest.mark.parametrize("first", ["ecoformer", "timm", "ecoformer.models.architectures"])
def test_registers_in_either_import_order(first: str) -> None:
    second = "timm" if first != "timm" else "ecoformer"
    code = f"import {first}; import {second}; import timm; assert len(timm.list_models('*ecoformer*')) == 9"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "name", ["pvt_v2_b0_ecoformer", "pvt_v2_b0_sra", "alt_gvt_small_ecoformer", "alt_gvt_small_sra"]
)
def test_model_contract(name: str) -> None:
    model = timm.create_model(name, **(ECO if name.endswith("ecoformer") else SMALL)).eval()
    images = torch.randn(2, 3, 64, 64)
    fit_hashes(model, images)
    features = model.forward_features(images)
    assert features.shape == (2, 4, 32)
    torch.testing.assert_close(model.forward_head(features), model(images))
    final, maps = model.forward_intermediates(images, indices=[1, 3])
    assert [m.shape for m in maps] == [(2, 16, 8, 8), (2, 32, 2, 2)]
    torch.testing.assert_close(final, features)
    assert model.get_classifier().out_features == 10 and model.no_weight_decay() == set()
    model.reset_classifier(5)
    assert model(images).shape == (2, 5)
    model.reset_classifier(0)
    torch.testing.assert_close(model(images), features.mean(1))
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    with pytest.raises(UserError, match="image of 31 x 64 px"):
        model(torch.randn(1, 3, 31, 64))


def test_features_only_equals_stage_outputs() -> None:
    torch.manual_seed(1)
    whole = timm.create_model("pvt_v2_b0_msa", **SMALL).eval()
    torch.manual_seed(1)
    maps = timm.create_model("pvt_v2_b0_msa", features_only=True, **SMALL).eval()
    assert maps.feature_info.channels() == [8, 16, 24, 32] and maps.feature_info.reduction() == [4, 8, 16, 32]
    images = torch.randn(1, 3, 64, 96)
    for found, (tokens, size) in zip(maps(images), whole.each_stage(images), strict=True):
        torch.testing.assert_close(found, tokens.mT.unflatten(2, size))


def test_checkpointing_changes_no_gradient() -> None:
    model = timm.create_model("pvt_v2_b0_ecoformer", **ECO)
    images = torch.randn(2, 3, 64, 64)
    fit_hashes(model, images)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_missing_pretrained_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"pvtv2_b0_ecoformer\.pth cannot be downloaded from here; put the file at"):
        timm.create_model("pvt_v2_b0_ecoformer", pretrained=True)


@pytest.mark.parametrize(
    ("name", "options", "changed", "layers"),
    [
        ("vit_tiny_patch16_224", dict(img_size=64, depth=3, embed_dim=48, num_heads=3), 3, 3),
        ("pvt_v2_b0", dict(embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4)), 6, 8),
        ("twins_svt_small", dict(embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), depths=(2, 2, 2, 2)), 6, 8),
    ],
)
def test_timms_networks_convert(name: str, options: dict, changed: int, layers: int) -> None:
    model = timm.create_model(name, num_classes=5, **options)
    old = {key: value.clone() for key, value in model.state_dict().items()}
    report = ecoformer.convert(model, nbits=8, supports=4, fit=ecoformer.FitOptions(topk=2, iterations=2))
    assert len(report.changed) == changed and len(report.layers) == layers and f"{changed} of {layers}" in str(report)
    first, new = report.changed[0].name, model.state_dict()
    rows = old.get(f"{first}.q.weight", old.get(f"{first}.qkv.weight"))
    assert torch.equal(new[f"{first}.to_qk.weight"], rows[: len(new[f"{first}.to_qk.weight"])])
    assert torch.equal(
        new[f"{first}.to_v.weight"],
        old.get(f"{first}.kv.weight", rows)[-len(rows) // (3 if len(rows) > len(new[f"{first}.to_v.weight"]) else 1) :],
    )
    images = torch.randn(2, 3, 64, 64)
    model(images).sum().backward()  # training: fits and learns
    assert all(m.ksh.is_fitted for m in model.modules() if isinstance(m, EcoFormerAttention))
    assert torch.isfinite(model.eval()(images)).all() and ecoformer.ledger(model, (3, 64, 64)).total.mul > 0


def test_few_tokens_may_stay_softmax() -> None:
    model = PVTv2(**{**SMALL, "attn_type": "msa"})
    report = ecoformer.convert(model, min_tokens=100, inputs=torch.randn(1, 3, 64, 64))
    assert [layer.name for layer in report.changed] == ["block1.0.attn"]
    assert "16 tokens, fewer than 100" in str(report)
    with pytest.raises(UserError, match="has no self-attention of a known kind"):
        ecoformer.convert(torch.nn.Linear(2, 2))


def test_weights_that_carry_over() -> None:
    """EVA holds the biases of q and v outside of qkv, or q, k and v apart; rotary positions go, and are told."""
    small = dict(img_size=28, patch_size=14, embed_dim=32, depth=1, num_heads=2, num_classes=3)
    for name, kept in (("eva02_tiny_patch14_224", "q_bias, v_bias"), ("eva02_base_patch14_224", "q_proj, v_proj")):
        model = timm.create_model(name, **small)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        old = {k.removeprefix("blocks.0.attn."): v.clone() for k, v in model.state_dict().items()}
        report = str(ecoformer.convert(model, fit="adam"))
        assert kept in report and "gave up key rows" in report and "rotary positions" in report
        new = model.blocks[0].attn
        assert torch.equal(new.to_v.bias, old.get("v_bias", old.get("v_proj.bias")))
        assert torch.equal(new.to_qk.bias, old.get("q_bias", old.get("q_proj.bias")))
        assert new.fit_options.method == "adam"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("swin_tiny_patch4_window7_224", "WindowAttention: it has relative_position_bias_table"),
        ("cait_xxs24_224", "TalkingHeadAttn: it has proj_l, proj_w"),
        ("xcit_nano_12_p16_224", "XCA: it has temperature"),
    ],
)
def test_other_attention_is_refused_by_name(name: str, why: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(UserError, match=f"attention layers of this .* can be converted; .*, {why}"):
        ecoformer.convert(model)


def test_pooling_by_attention_stays() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_siglip_224", depth=1)
    report = ecoformer.convert(model)
    assert [layer.name for layer in report.changed] == ["blocks.0.attn"]
    assert "attn_pool: AttentionPoolLatent stays (it has latent" in str(report)
