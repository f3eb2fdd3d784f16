"""Costs: the published tables, the extracted truth, and the latency table's refusals."""

import json
import random
from pathlib import Path

import pytest
import torch

from focusformer.method.architecture import AUTOFORMER, SPACES, Architecture, SuperSizes
from focusformer.method.cost import LatencyTable, cost, costs_of, macs, params, relative_macs
from focusformer.method.supernet import Supernet
from paperkit.errors import UserError

NAMED = {  # parameters, official GFLOPs, GMACs, GMACs of relative position
    "ti": (5_867_944, 1.3440, 1.2832, 0.1987),
    "s": (22_891_432, 4.8921, 4.7739, 0.3875),
    "b": (53_691_688, 11.2369, 11.0454, 0.6458),
}
RANGES = {  # parameters and official GFLOPs of the smallest and of the largest
    "ti": (5_366_056, 1.225, 10_517_272, 2.340),
    "s": (13_057_320, 2.861, 34_790_440, 7.342),
    "b": (41_687_896, 8.844, 76_882_264, 15.972),
}


@pytest.mark.parametrize("name", list(NAMED))
def test_named_architectures(name: str) -> None:
    sizes, a, (parameters, flops, gmacs, relative) = SPACES[name].sizes, AUTOFORMER[name], NAMED[name]
    assert params(sizes, a) == parameters
    assert cost(sizes, a, "official_flops") / 1e9 == pytest.approx(flops, abs=5e-5)
    assert macs(sizes, a) / 1e9 == pytest.approx(gmacs, abs=5e-5)
    assert relative_macs(sizes, a) / 1e9 == pytest.approx(relative, abs=5e-5)


@pytest.mark.parametrize("name", list(RANGES))
def test_ranges_of_spaces(name: str) -> None:
    space, (least, least_flops, most, most_flops) = SPACES[name], RANGES[name]
    flops = costs_of(space.sizes, "official_flops")
    assert (params(space.sizes, space.smallest()), params(space.sizes, space.largest())) == (least, most)
    assert flops(space.smallest()) / 1e9 == pytest.approx(least_flops, abs=5e-4)
    assert flops(space.largest()) / 1e9 == pytest.approx(most_flops, abs=5e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"relative_position": False},
        {"abs_pos": False},
        {"qkv_bias": False},
        {"pre_norm": False},
        {"change_qkv": False, "relative_position": False},
    ],
    ids=str,
)
def test_parameters_are_those_with_a_gradient(changes: dict[str, bool]) -> None:
    """The counter equals the numbers of a supernet that a loss can reach."""
    sizes = SuperSizes(24, 3, 3, 2.0, head_dim=8, img_size=16, patch_size=4, num_classes=5,
                       max_relative_position=3, **changes)  # fmt: skip
    heads = (3, 1) if not sizes.change_qkv else (2, 1)
    a = Architecture(16, heads, (2.0, 0.7))
    torch.manual_seed(0)
    network = Supernet(sizes)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    network.double()(torch.randn(4, 3, 16, 16).double(), a).square().sum().backward()
    reached = sum(int((p.grad != 0).sum()) for p in network.parameters() if p.grad is not None)
    key_biases = sum(sizes.q(heads) for heads in a.heads) * sizes.qkv_bias  # their gradients are rounding, or 0
    assert 0 <= params(sizes, a) - reached <= key_biases


def test_costs_are_additive_over_layers() -> None:
    """What feasibility masks rest on: a layer's summand depends on the width and itself alone."""
    space, rng = SPACES["digits"], random.Random(3)
    for kind in ("params", "official_flops", "macs"):
        count = costs_of(space.sizes, kind)
        for _ in range(20):
            a = space.sample_uniform(rng)
            one = [count(Architecture(a.embed, (h,), (r,))) for h, r in zip(a.heads, a.ratios, strict=True)]
            two = Architecture(a.embed, (a.heads[0],) * 2, (a.ratios[0],) * 2)
            rest = 2 * one[0] - count(two)  # all but the layers
            assert count(a) == sum(one) - (a.depth - 1) * rest


def test_unknown_cost_is_one_line() -> None:
    with pytest.raises(UserError, match="known: params, official_flops, macs"):
        costs_of(SPACES["ti"].sizes, "flops")


def table() -> LatencyTable:
    """Of the digits space, made up."""
    space = SPACES["digits"]
    blocks = {(e, h, r): 0.1 * e + h + r for e in space.embed for h in space.heads for r in space.ratios}
    return LatencyTable({e: 0.5 * e for e in space.embed}, blocks, "made up")


def test_latency_is_a_sum_of_parts(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    path.write_text(json.dumps(table().to_plain()))
    read = LatencyTable.read(path)
    assert read == table()
    read.check(SPACES["digits"])
    assert read(Architecture(16, (1, 4), (0.5, 4.0))) == pytest.approx(8 + (1.6 + 1 + 0.5) + (1.6 + 4 + 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plain: plain["blocks"].pop("24/2/0.5"), "lacks 1 entries, the first the block 24/2/0.5"),
        (lambda plain: plain["stem"].pop("32"), "the stem of width 32"),
        (lambda plain: plain["stem"].update({"32": -1}), "latency of 32 is -1; need positive"),
        (lambda plain: plain["stem"].update({"32": "fast"}), "latency of 32 is 'fast'"),
        (lambda plain: plain["blocks"].update({"24/2": 1.0}), "such as 192/3/3.5"),
        (lambda plain: plain.pop("stem"), 'need an object with "stem" and "blocks"'),
    ],
)
def test_lacking_or_broken_entry_is_one_line(change: object, message: str, tmp_path: Path) -> None:
    plain = table().to_plain()
    change(plain)  # type: ignore[operator]
    path = tmp_path / "latency.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(UserError) as error:
        LatencyTable.read(path).check(SPACES["digits"])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_architecture_beyond_the_table_is_refused() -> None:
    with pytest.raises(UserError, match="the first the block 16/3/1"):
        table()(Architecture(16, (3,), (1.0,)))
