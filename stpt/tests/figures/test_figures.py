"""The paper's pictures: that they draw, and the numbers behind them."""

from pathlib import Path

import pytest
import torch

from paperkit.results.report import save_figure
from stpt.figures.attention_maps import attention_map, attention_maps, draw_attention_maps
from stpt.figures.cost_by_stage import draw_cost_by_stage
from stpt.figures.map_against_macs import Point, draw_map_against_macs
from stpt.figures.start_end_features import activation, draw_start_end_features
from stpt.figures.timeline import Bar, draw_timeline, stacked, strongest, timeline
from stpt.method.attention import GlobalAttention, LocalAttention
from stpt.method.backbone import Backbone

BARS = [Bar(10, 20, "jump", 0.9), Bar(12, 18, "dive", 0.3), Bar(20, 30, "jump", 0.5)]


def test_every_picture_is_written(tmp_path: Path) -> None:
    points = [Point("LLGG", 30.0, [90.0, 92.0], "ours"), Point("AFSD", 160.0, [52.0], "published")]
    drawn = {
        "costs": draw_cost_by_stage({"LLGG": [{"linear": 1.0, "attention": 2.0}, {"convolution": 0.5}]}),
        "macs": draw_map_against_macs({"digits": ("million", points), "THUMOS14": ("billion", points[1:])}),
        "features": draw_start_end_features({"one": (torch.rand(50, 8), torch.rand(50, 8))}, [(10.0, 20.0)]),
        "attention": draw_attention_maps(
            torch.rand(24, 16, 20, 3), {"net": {"stage 1": torch.rand(12, 4, 5), "stage 2": torch.rand(6, 2, 3)}},
            (0.5, 0.5, 0.5),
        ),
    }  # fmt: skip
    for name, figure in drawn.items():
        save_figure(figure, tmp_path / f"{name}.png")
    draw_timeline(tmp_path / "lanes.png", BARS, {"coarse": BARS, "refined": []}, length=40.0)
    draw_timeline(tmp_path / "unknown.png", [], BARS)
    draw_timeline(tmp_path / "nothing.png", [], [])
    many = [Bar(i, i + 5, f"class {i}", i / 40) for i in range(40)]
    draw_timeline(tmp_path / "many.png", many, many)
    assert len(list(tmp_path.iterdir())) == 8 and all(path.stat().st_size > 3000 for path in tmp_path.iterdir())


def test_bars_that_overlap_stand_in_rows_of_their_own() -> None:
    assert stacked(BARS) == [0, 1, 0]
    assert stacked([Bar(5, 9, "a"), Bar(0, 10, "a"), Bar(6, 7, "a")]) == [1, 0, 2]


def test_the_strongest_bars_are_shown() -> None:
    assert strongest(BARS, 0.4, 10) == [BARS[0], BARS[2]] and strongest(BARS, 0.0, 1) == [BARS[0]]


def test_timeline_draws_each_bar_at_its_time_and_colours_by_class() -> None:
    panel = timeline({"truth": [Bar(1, 3, "jump")], "found": BARS}, "title", "s", 40.0).axes[0]
    boxes = [(patch.get_x(), patch.get_width()) for patch in panel.patches]
    assert boxes == [(1, 2), (10, 10), (12, 6), (20, 10)] and panel.get_xlim() == (0, 40)
    colors = [patch.get_facecolor()[:3] for patch in panel.patches]
    assert colors[0] == colors[1] == colors[3] != colors[2]
    assert [text.get_text() for text in panel.texts] == ["0.90", "0.30", "0.50"]


def test_costs_are_stacked() -> None:
    panel = draw_cost_by_stage({"net": [{"linear": 1.0, "attention": 2.0}, {"linear": 4.0}]}).axes[0]
    assert [(bar.get_y(), bar.get_height()) for bar in panel.patches] == [(0, 1), (0, 4), (1, 2), (4, 0)]
    assert panel.get_title(loc="left") == "net: 7.0 billion"


@pytest.mark.parametrize(
    "layer",
    [LocalAttention(12, 3, (4, 2, 3)), GlobalAttention(12, 3), GlobalAttention(12, 3, (2, 2, 1), "avg")],
    ids=["local", "global", "reduced"],
)
def test_attention_maps_are_the_layers_own_weights(layer: LocalAttention | GlobalAttention) -> None:
    """One value channel a token: what comes out is the mean over heads of the weights on that token."""
    torch.manual_seed(0)
    x, place = torch.randn(6, 5, 5, 12), (5, 2, 4)
    found = attention_map(layer, x, place)
    assert found.shape == (6, 5, 5) and float(found.sum().detach()) == pytest.approx(1)
    taken = torch.zeros(6, 5, 5)
    if isinstance(layer, LocalAttention):
        taken[4:6, 2:4, 3:5] = 1  # the part of the window that lies on the map
    else:
        taken += 1
    assert torch.equal(found > 0, taken > 0)
    # By the layer's own forward pass: its answer to values v is the weighted mean of v.
    project = layer.qkv if hasattr(layer, "qkv") else layer.kv
    with torch.no_grad():
        project.weight[-12:] = 0
        project.weight[-12:, 0] = 1  # every value is the token's first channel
        project.bias[-12:] = 0
        layer.proj.weight.copy_(torch.eye(12) / 1)
        layer.proj.bias.zero_()
    if getattr(layer, "ratio", (1, 1, 1)) == (1, 1, 1):
        answer = layer(x[None])[0][place].mean()
        torch.testing.assert_close(answer, (found * x[..., 0]).sum())


def test_maps_of_a_backbone_are_local_then_global() -> None:
    backbone = Backbone(
        dims=(8, 8, 8), depths=(1, 1, 1), heads=(1, 1, 1), kernels=((3, 3, 3),) * 3,
        strides=((2, 2, 2), (1, 1, 1), (1, 1, 1)), windows=((2, 2, 2),) * 3, reductions=((1, 1, 1),) * 3,
        kinds="LCG", out_stages=(2,), in_channels=1,
    ).eval()  # fmt: skip
    maps = attention_maps(backbone, torch.randn(1, 16, 8, 8), (0.9, 0.0, 0.5))
    assert list(maps) == ["stage 1, local", "stage 3, global"]  # a convolution attends to nothing
    local, everywhere = maps.values()
    assert set(local.nonzero()[:, 0].tolist()) == {6, 7} and (everywhere > 0).all()


def test_activation_is_what_the_losses_look_at() -> None:
    features = torch.rand(5, 4)
    torch.testing.assert_close(activation(features), features.tanh().mean(1))
