"""Multiply-adds and parameters against the published tables."""

from functools import cache

import pytest
import timm
import torch

from paperkit.errors import UserError
from snnet.method.counting import configuration_macs, parameters, reported_parameters
from snnet.method.stitching import StitchedNetwork
from snnet.models.released_networks import RELEASED, build, build_on_meta, find, released_stitches

TOTALS = {
    "deit_ti_s_b": (118_403_448, 4_067_712),
    "swin_ti_s_b": (170_009_108, 4_346_272),
    "levit_192_256": (30_322_097, 481_152),
    "resnet18_resnet50": (37_904_976, 658_432),
    "resnet18_swin_ti": (40_200_010, 222_144),
}
ANCHORS = {
    "deit_ti_s_b": ((5_717_416, 1_258_411_200), (22_050_664, 4_608_338_304), (86_567_656, 17_582_740_224)),
    "swin_ti_s_b": ((28_288_354, 4_509_194_496), (49_606_258, 8_768_534_784), (87_768_224, 15_467_826_176)),
    "levit_192_256": ((10_947_069, 661_663_808), (18_893_876, 1_133_412_864)),
    "resnet18_resnet50": ((11_689_512, 1_819_065_856), (25_557_032, 4_111_512_576)),
    "resnet18_swin_ti": ((11_689_512, 1_819_065_856), (28_288_354, 4_509_194_496)),
}


@cache
def network_of(name: str) -> StitchedNetwork:
    return build_on_meta(name)


@pytest.mark.parametrize("name", RELEASED)
def test_parameters_of_whole_networks(name: str) -> None:
    network = network_of(name)
    stitching = sum(p.numel() for p in network.stitch_layers.parameters())
    assert (sum(p.numel() for p in network.parameters()), stitching) == TOTALS[name]


@pytest.mark.parametrize("name", ["levit_192_256", "resnet18_resnet50", "resnet18_swin_ti"])
def test_multiply_adds_of_anchors_and_stitches(name: str) -> None:
    """DeiT's and Swin's are recomputed with `released_configurations` in test_reference."""
    macs, needed = configuration_macs(network_of(name), (3, 224, 224)), parameters(network_of(name))
    assert tuple(zip(needed, macs, strict=True))[: len(ANCHORS[name])] == ANCHORS[name]
    assert macs == [stitch.flops for stitch in released_stitches(name)]
    assert reported_parameters(network_of(name)) is None


@pytest.mark.parametrize("name", ["deit_ti_s_b", "swin_ti_s_b"])
def test_reported_parameters(name: str) -> None:
    reported = reported_parameters(network_of(name))
    assert reported == [stitch.params for stitch in released_stitches(name)]
    assert tuple(parameters(network_of(name))[:3]) == tuple(params for params, _ in ANCHORS[name])


def test_true_parameters_of_swin() -> None:
    """The authors leave out the patch merging layers that the front anchor has run: one at stage 1, two at stage 2."""
    true, reported = parameters(network_of("swin_ti_s_b")), reported_parameters(network_of("swin_ti_s_b"))
    assert reported is not None
    assert (reported[5], true[5]) == (49_568_818, 49_643_314)
    assert {true[i] - reported[i] for i in range(7, 24)} == {370_944}
    assert true[:5] == reported[:5]


def test_true_parameters_of_deit() -> None:
    """Class token and position embedding of the front are needed; the end's final norm is not, where it is skipped."""
    true, reported = parameters(network_of("deit_ti_s_b")), reported_parameters(network_of("deit_ti_s_b"))
    assert reported is not None
    assert {true[i] - reported[i] for i in range(3, 37)} == {198 * 192 - 2 * 384}


def test_final_norm_costs_what_it_costs() -> None:
    with torch.device("meta"):
        anchors = [timm.create_model(name) for name in RELEASED["deit_ti_s_b"].anchors[:2]]
    costs = [configuration_macs(StitchedNetwork(anchors, stitched_final_norm=n), (3, 224, 224)) for n in (False, True)]
    assert {b - a for a, b in zip(*costs, strict=True)} == {0, 5 * 197 * 384}
    assert costs[0][2] == 4_696_010_496


def test_released_table() -> None:
    """The figures quoted by the paper and its code."""
    deit = released_stitches("deit_ti_s_b")
    assert len(deit) == 71 and round(deit[24].acc1, 2) == 75.63 and deit[24].cut is not None
    assert sum(stitch.flops for stitch in deit) == pytest.approx(540.78e9, rel=1e-4)
    assert round(released_stitches("levit_192_256")[2].acc1, 2) == 79.35
    assert [len(released_stitches(name)) for name in RELEASED] == [71, 41, 8, 10, 8]


def test_build_takes_classes_drop_path_and_options() -> None:
    with torch.device("meta"):
        network = build("resnet18_swin_ti", num_classes=7, drop_path_rate=0.3, layer_assignment="aligned")
    swin = network.anchors[1]
    assert swin.head.fc.out_features == 7 and swin.layers[3].blocks[1].drop_path2.drop_prob == pytest.approx(0.3)
    assert network.pairs[2, 0, 1].layer_of == (0, 0, 1, 1, 1)
    assert not build_on_meta("deit_ti_s_b").stitched_final_norm


def test_unknown_name() -> None:
    with pytest.raises(UserError, match="no released SN-Net is called 'swin_large'; there are deit_ti_s_b"):
        find("swin_large")
