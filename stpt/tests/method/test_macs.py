"""Multiply-accumulates and parameters of the real networks, on the meta device, against counts by hand."""

import pytest
import torch
from torch import nn

from stpt.method.attention import GlobalAttention, LocalAttention
from stpt.method.macs import Macs, count_macs
from stpt.models.networks import create_backbone

CLIP = (1, 3, 256, 96, 96)


def billions(name: str, shape: tuple[int, ...] = CLIP, **changes: object) -> float:
    """Of a named backbone."""
    return counted(name, shape, **changes).total / 1e9


def counted(name: str, shape: tuple[int, ...] = CLIP, **changes: object) -> Macs:
    with torch.device("meta"):
        return count_macs(create_backbone(name, **changes), shape)


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("stpt", 110.4),
        ("stpt_llll", 110.2),
        ("stpt_lllg", 110.4),
        ("stpt_lggg", 367.3),
        ("stpt_gggg", 1403.7),
        ("stpt_window_8x6x6", 107.2),
    ],
)
def test_patterns_cost_what_was_counted_by_hand(name: str, macs: float) -> None:
    assert billions(name) == pytest.approx(macs, abs=0.05)


def test_other_clips() -> None:
    assert billions("stpt", (1, 3, 768, 96, 96)) == pytest.approx(400.0, abs=0.05)
    assert billions("stpt_768", (1, 3, 768, 96, 96)) == pytest.approx(329.0, abs=0.05)
    assert billions("stpt", (1, 3, 96, 96, 96)) == pytest.approx(38.7, abs=0.05)


def test_one_global_layer_after_the_patches_costs_over_a_thousand() -> None:
    """The paper's own figure: 2 N^2 C with N = 128*24*24 and C = 96."""
    first = counted("stpt_gggg").parts["stages.0"]["attention"]
    assert first == 2 * (128 * 24 * 24) ** 2 * 96
    assert first / 1e9 == pytest.approx(1044, abs=0.5)


def test_parameters() -> None:
    assert counted("stpt").params / 1e6 == pytest.approx(45.4, abs=0.05)
    assert counted("i3d").params / 1e6 == pytest.approx(12.29, abs=0.005)


def test_i3d() -> None:
    """Both streams, as AFSD fuses them, 81.66 and 75.19."""
    assert billions("i3d") == pytest.approx(81.66, abs=0.005)
    assert billions("i3d", (1, 2, 256, 96, 96), in_channels=2) == pytest.approx(75.19, abs=0.005)


def test_layers_by_kind() -> None:
    """4 N C^2 + 2 N w C for local attention, 2 N (N / prod r) C for reduced global attention."""
    n, c = 8 * 6 * 4, 12
    local = count_macs(LocalAttention(c, 2, (2, 3, 2)), (1, 8, 6, 4, c))
    assert local.kinds == {"linear": 4 * n * c**2, "attention": 2 * n * 12 * c}
    reduced = count_macs(GlobalAttention(c, 2, (2, 3, 2)), (1, 8, 6, 4, c))
    assert reduced.kinds == {
        "linear": 2 * n * c**2 + 2 * (n // 12) * c**2,
        "attention": 2 * n * (n // 12) * c,
        "convolution": n * c,
    }
    assert reduced.of("q") == n * c**2 and reduced.of("reduction_norm") == 0


def test_parts_add_up() -> None:
    macs = counted("stpt")
    assert len(macs.stages) == 4
    for kind, total in macs.kinds.items():
        assert sum(stage[kind] for stage in macs.stages) == total
    assert macs.of("stages.0.patch_embed") == 128 * 24 * 24 * 96 * 3 * 3 * 7 * 7
    assert counted("i3d").stages == []


def test_a_network_is_left_as_it_is() -> None:
    layer = nn.Sequential(nn.Linear(3, 4), nn.Dropout())
    before = layer[0].weight.clone()
    assert count_macs(layer, (5, 3)).total == 60
    assert layer.training and torch.equal(layer[0].weight, before)


def test_an_operator_of_no_known_kind_is_named() -> None:
    """Rather than left out of the count."""

    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch._scaled_mm(x, x.mT, torch.ones(()), torch.ones(()))

    with pytest.raises(ValueError, match=r"_scaled_mm.* is of no known kind; known are mm, "):
        count_macs(Scaled(), torch.empty(16, 16, device="meta", dtype=torch.float8_e4m3fn))
