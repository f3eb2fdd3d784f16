"""`binarize` on timm's networks: what changes, what stays, what is refused; stages of training."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from timm.models.nest import Nest
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from bivit.method.attention import BinaryAttention
from bivit.method.ledger import ledger
from bivit.models.binarize import METHODS, TRAININGS, BinaryConfig, binarize, binary_layers, set_stage, stage_config
from paperkit.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"


def vit(**options: object) -> VisionTransformer:
    torch.manual_seed(0)
    settings = dict(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=3, num_classes=5, mlp_ratio=2)
    return VisionTransformer(**{**settings, **options})  # type: ignore[arg-type]


def swin(**options: object) -> SwinTransformer:
    torch.manual_seed(0)
    settings = dict(
        img_size=20, patch_size=2, embed_dim=12, depths=(2, 1), num_heads=(2, 3), window_size=4, num_classes=5
    )
    return SwinTransformer(**{**settings, **options})  # type: ignore[arg-type]


def pvt() -> PyramidVisionTransformerV2:
    torch.manual_seed(0)
    return PyramidVisionTransformerV2(
        depths=(1, 1), embed_dims=(8, 16), num_heads=(1, 2), sr_ratios=(2, 1), mlp_ratios=(2, 2), num_classes=5
    )


BUILDERS = {
    "vit": vit,
    "registers": lambda: vit(reg_tokens=2, no_embed_class=True),
    "layer scale, no biases": lambda: vit(init_values=0.1, qkv_bias=False, proj_bias=False),
    "deit": lambda: timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=3, num_classes=5
    ),
    "swin": swin,
    "swin of another window": lambda: swin(always_partition=True, strict_img_size=False),
    "nest": lambda: Nest(
        32, patch_size=2, num_levels=2, embed_dims=(12, 16), num_heads=(2, 2), depths=(1, 1), num_classes=5
    ),
    "pvt": pvt,
}  # fmt: skip


CASES = [
    (name, method)
    for name in BUILDERS
    for method in METHODS
    if name in ("vit", "swin", "pvt") or method in ("bivit", "bit")
]
"""Every method on three networks; on the others, whose linears are the same, the paper's and BiT's."""


@pytest.mark.parametrize(("name", "method"), CASES)
def test_every_method_trains_every_network(name: str, method: str) -> None:
    """One step: all weights of binary layers get a gradient, parameters are the float network's own, and two passes
    in eval mode agree with a copy loaded from the state."""
    model, size = BUILDERS[name](), {"vit": 16, "registers": 16, "layer scale, no biases": 16}.get(name, 32)
    size = 20 if name.startswith("swin") else size
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    held = dict(model.named_parameters())
    config = replace(METHODS[method], mlp="w1a1", normalize="count")
    report = binarize(model, config)
    after = dict(model.named_parameters())
    for key, value in weights.items():
        assert torch.equal(model.state_dict()[key], value), key
        assert key not in held or after[key] is held[key], key
    x = torch.randn(2, 3, size, size)
    out = model.train()(x)
    out.square().mean().backward()
    for key, layer in binary_layers(model).items():
        assert layer.weight.grad is not None and layer.weight.grad.isfinite().all(), key
        if layer.scaling_factor is not None:
            assert layer.scaling_factor.grad is not None and layer.scaling_factor.gt(0).all(), key
    copy = BUILDERS[name]()
    binarize(copy, config)
    copy.load_state_dict(model.state_dict())
    torch.testing.assert_close(copy.eval()(x), model.eval()(x))
    printed = str(report)
    assert "patch_embed" in printed and "head" in printed and "stay float" in printed
    total = sum(p.numel() for p in model.parameters())
    assert report.binary_weights + sum(numbers for _, numbers in report.stays) == total


def test_report_of_deit() -> None:
    """Every weight of the blocks' linears is one bit, and the list that stays float is the paper's."""
    with torch.device("meta"):
        model = timm.create_model("deit_small_patch16_224")
    report = binarize(model, "bivit")
    assert report.binary_weights == 21233664 and len(report.changed) == 24
    names = {name for name, _ in report.stays}
    parts = ("qkv", "proj")
    wanted = {f"blocks.*.attn.{p}.{k}" for p in parts for k in ("bias", "scaling_factor")}
    wanted |= {f"blocks.*.mlp.{p}.{k}" for p in ("fc1", "fc2") for k in ("bias", "scaling_factor")}
    wanted |= {f"blocks.*.norm{i}.{k}" for i in (1, 2) for k in ("weight", "bias")}
    wanted |= {"cls_token", "pos_embed"} | {
        f"{p}.{k}" for p in ("patch_embed.proj", "norm", "head") for k in ("weight", "bias")
    }
    assert names == wanted
    assert "12x" in str(report)


def test_released_state_keys() -> None:
    """timm's keys and the scales, nothing else."""
    model = vit()
    before = set(model.state_dict())
    binarize(model, "bivit")
    added = set(model.state_dict()) - before
    places = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert added == {f"blocks.{i}.{place}.scaling_factor" for i in range(3) for place in places}
    mean = vit()
    binarize(mean, "bivit_mean")
    assert set(mean.state_dict()) == before


REFUSED = {
    "resnet18": (lambda: timm.create_model("resnet18"), "ResNet has no block with one attn and one mlp"),
    "swin v2": (lambda: timm.create_model("swinv2_tiny_window8_256"), "only timm's Attention"),
    "beit": (lambda: timm.create_model("beit_base_patch16_224"), "only timm's Attention"),
    "qk_norm": (lambda: vit(qk_norm=True), "blocks.0.attn, Attention, cannot be binary: queries and keys"),
    "scale_norm": (lambda: vit(scale_attn_norm=True), "it has a norm inside"),
    "mlp norm": (lambda: vit(scale_mlp_norm=True), "blocks.0.mlp, Mlp, cannot be binary: it has a norm inside"),
    "gated mlp": (lambda: vit(mlp_layer=timm.layers.SwiGLU), "only timm's Mlp"),
    "linear pvt": (lambda: timm.create_model("pvt_v2_b2_li"), "keys are pooled"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    """One line with the module's name; the network is as it was."""
    build, message = REFUSED[name]
    with torch.device("meta"):
        model = build()
    before = {key: type(module) for key, module in model.named_modules()}
    with pytest.raises(UserError, match=r"cannot be binary|no block") as caught:
        binarize(model, "bivit")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert before == {key: type(module) for key, module in model.named_modules()}


def test_binary_already() -> None:
    model = vit()
    binarize(model, "bivit")
    with pytest.raises(UserError, match="binary already"):
        binarize(model, "bibert")
    with pytest.raises(UserError, match="binary already, and this stage has it float"):
        set_stage(model, METHODS["bivit"], 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(attention="softmax"), "attention 'softmax' does not exist; known: sab"),
        (dict(mlp="w2a2"), "known: w1a1"),
        (dict(mlp_linear="pw"), "linear rule 'pw' does not exist"),
        (dict(mlp_linear={}), r"mlp_linear \{\} is no name"),
        (dict(beta="0.25"), "beta '0.25' is no number"),
        (dict(v_scale="yes"), "v_scale 'yes' is no yes or no"),
        (dict(beta=0), r"beta 0 is outside"),
        (dict(depth=0), "depth 0 is outside"),
        (dict(zero="minus"), "zero 'minus'"),
    ],
)
def test_impossible_config(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BinaryConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="method 'bvit' does not exist"):
        binarize(vit(), "bvit")


def test_stages_of_clb() -> None:
    """Attention first; then MLPs, from the stage's weights; what attention learned is kept."""
    model, config = vit(), replace(METHODS["bivit"], mlp="w1a1")
    set_stage(model, config, 1)
    assert len(binary_layers(model)) == 6 and all("attn" in name for name in binary_layers(model))
    scale = model.blocks[0].attn.qkv.scaling_factor
    with torch.no_grad():
        scale.mul_(2)
        model.blocks[1].mlp.fc1.weight.mul_(3)
    kept, fc1 = scale.clone(), model.blocks[1].mlp.fc1.weight
    set_stage(model, config, 2)
    assert len(binary_layers(model)) == 12
    assert model.blocks[0].attn.qkv.scaling_factor is scale and torch.equal(scale, kept)
    layer = model.blocks[1].mlp.fc1
    assert layer.weight is fc1
    torch.testing.assert_close(layer.scaling_factor, fc1.abs().mean(1, keepdim=True))
    at_once = vit()
    at_once.load_state_dict(model.state_dict(), strict=False)
    binarize(at_once, config)
    at_once.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(at_once.eval()(x), model.eval()(x))


def test_stages_of_other_trainings() -> None:
    model, config = vit(depth=4), replace(METHODS["bivit"], mlp="w1a1")
    set_stage(model, config, 1, "two_steps")
    assert {layer.rule.weights for layer in binary_layers(model).values()} == {"float"}
    set_stage(model, config, 2, "two_steps")
    assert {layer.rule.weights for layer in binary_layers(model).values()} == {"sign"}
    deep = vit(depth=4)
    counts = []
    for stage in range(1, TRAININGS["depth"] + 1):
        set_stage(deep, config, stage, "depth")
        counts.append(len(binary_layers(deep)))
    assert counts == [4, 8, 12, 16]
    x = torch.randn(1, 3, 16, 16)
    assert deep.eval()(x).isfinite().all() and model.eval()(x).isfinite().all()
    assert stage_config(config, "one_step", 1) == config
    for training, stage, message in (("clp", 1, "known: one_step"), ("clb", 3, "stages 1 to 2")):
        with pytest.raises(UserError, match=message):
            stage_config(config, training, stage)
    with pytest.raises(UserError, match="leaves one of them float"):
        stage_config(replace(config, mlp="float"), "clb", 1)


def test_swin_takes_another_input_size() -> None:
    """timm's `set_input_size` reaches the replaced windows."""
    model = swin()
    binarize(model, "bivit")
    model.set_input_size(img_size=24, window_size=6)
    assert model.eval()(torch.randn(1, 3, 24, 24)).isfinite().all()


def test_nan_input_is_seen() -> None:
    """A NaN pixel reaches the logits, although bits cannot hold it."""
    for method in METHODS:
        model = vit()
        binarize(model, replace(METHODS[method], mlp="w1a1"))
        x = torch.randn(1, 3, 16, 16)
        model.eval()(x)
        x[0, 0, 0, 0] = float("nan")
        assert model(x).isnan().all(), method


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "nest_tiny"])
def test_ledger_of_binary_networks(name: str) -> None:
    """The binary network counts as the float one does; what it is built as equals the variant's column."""
    row = json.loads((GOLDEN / "ops_ledger.json").read_text())[name]
    for variant, changes in (("w1a32", {}), ("w1a1", {"mlp": "w1a1"}), ("stage1", {"mlp": "float"})):
        with torch.device("meta"):
            model = timm.create_model(name)
        binarize(model, replace(METHODS["bivit"], **changes))
        book = ledger(model)
        assert book.as_dict()["macs"] == row["macs"] and book.params == row["params"]
        assert book.ops_as_built == row["ops"][variant]
        if variant != "stage1":
            assert book.bytes_as_built(4) == row["size_bytes"]["packed_fp32_rest"]
            assert book.bytes_as_built(2) == row["size_bytes"]["packed_fp16_rest"]


def test_popcounts() -> None:
    """Words of one block by hand: 17 tokens, width 24 in 3 heads of 8, hidden 48; a word holds a row of each."""
    model = vit(depth=1)
    binarize(model, replace(METHODS["bivit"], mlp="w1a1"))
    linears = 17 * (72 + 24 + 48 + 24)
    assert ledger(model, (3, 16, 16)).popcounts == linears + 17 * 17 * 3 + 17 * 24
    with pytest.raises(UserError, match="no block with attn and mlp"):
        ledger(lambda: timm.create_model("resnet18"))


def test_fused_attention_is_not_called() -> None:
    """Every block of the network runs the replaced module, with the keywords that timm's blocks give."""
    model = vit()
    binarize(model, "bivit")
    assert all(isinstance(block.attn, BinaryAttention) for block in model.blocks)
    x = torch.randn(1, 3, 16, 16)
    mask = torch.ones(17, 17, dtype=torch.bool)
    out = model.forward_features(x, attn_mask=mask)
    torch.testing.assert_close(out, model.forward_features(x))
