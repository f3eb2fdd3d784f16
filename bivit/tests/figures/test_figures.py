"""The paper's pictures: that they draw, and that they show what they say."""

from pathlib import Path

import pytest
import timm
import torch
from timm.models.nest import Nest
from torch import nn

from bivit.figures.active_sets import SAB, active_sets
from bivit.figures.curves import draw_curves
from bivit.figures.latency import draw_latency
from bivit.figures.layers import learned_scales, surviving_gradient
from bivit.figures.of_a_model import figures_of, figures_of_student
from bivit.figures.scores import attention_logits
from bivit.figures.tradeoff import draw_tradeoff
from bivit.models.binarize import METHODS, binarize
from paperkit.results.report import save_figure


def vit() -> nn.Module:
    sizes = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=10)
    return timm.create_model("vit_tiny_patch16_224", **sizes).eval()


def swin() -> nn.Module:
    sizes = dict(img_size=32, patch_size=2, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 4))
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=10, **sizes).eval()


def nest() -> nn.Module:
    sizes = dict(img_size=32, patch_size=2, embed_dims=(12, 16), num_heads=(2, 2), depths=(1, 2), num_levels=2)
    return Nest(num_classes=10, **sizes).eval()


@pytest.mark.parametrize(("build", "layers"), [(vit, 2), (swin, 4), (nest, 3)])
def test_scores_are_those_of_the_network(build: object, layers: int) -> None:
    """A score as the network's own dropout is given it, in each kind of attention; nothing of the network changes."""
    model, images, seen = build(), torch.randn(1, 3, 32, 32), []  # type: ignore[operator]
    fused = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    for module in model.modules():
        if hasattr(module, "attn_drop"):
            module.attn_drop.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    logits = attention_logits(model, images)
    assert len(logits) == len(seen) == layers
    for layer, scores in zip(logits, seen, strict=True):
        torch.testing.assert_close(layer.softmax(-1), scores)
    assert fused == [module for module in model.modules() if getattr(module, "fused_attn", False)]


def test_active_sets_of_a_row() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, -1.0]])
    assert active_sets(logits)[SAB].tolist() == [[1, 1, 0, 0]]  # e^-1 = 0.37 of the maximum is on, e^-2 = 0.14 is not


def test_pictures_of_a_network_and_of_its_student(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = vit(), torch.randn(2, 3, 32, 32)
    drawn = figures_of(model, images)
    binarize(model, METHODS["bivit"])
    model.eval()(images)
    drawn |= figures_of_student(model, images, "student")
    assert sorted(drawn) == ["attention_row", "gradients", "scales", "scores", "thresholds"]
    for name, draw in drawn.items():
        save_figure(draw(), tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_learned_scales_begin_as_the_mean_and_gradients_are_counted() -> None:
    torch.manual_seed(0)
    model, images = vit(), torch.randn(2, 3, 32, 32)
    binarize(model, METHODS["bivit"])
    model(images)
    scales = learned_scales(model)
    assert len(scales) == 8 and all(means == pytest.approx(learned) for means, learned in scales.values())
    shares = surviving_gradient(model, images)
    assert {f"blocks.{i}.attn.{name}" for i in (0, 1) for name in ("qkv, output", "proj, input")} <= set(shares)
    assert "blocks.0.mlp.fc1, input" not in shares  # float activations
    assert all(0 <= share <= 100 for share in shares.values())
    assert not any(module._forward_hooks for module in model.modules())


def test_every_other_picture_is_written(tmp_path: Path) -> None:
    drawn = {
        "curves": draw_curves({"one step": [50.0, 60.0], "CLB": [40.0, 70.0]}, 1.5, "students"),
        "tradeoff": draw_tradeoff({"a": (1.0, 2.0, 90.0, 1.0), "b": (0.1, 0.2, 80.0, 0.0)}, ("M", "kB"), "accuracy"),
        "latency": draw_latency(
            {"linear": {"float32": 2.0, "packed": 0.1}, "attention": {"packed": 0.1}},
            {"block": {"linears": 0.3, "norms": 0.1}},
            "one thread",
        ),
    }
    for name, picture in drawn.items():
        save_figure(picture, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
