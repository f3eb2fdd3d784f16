"""I3D: names and sizes of the released files, padding on odd sizes, frozen BatchNorm."""

import pytest
import torch

from stpt.models.i3d import I3D, MIXED, Inception, same_max_pool


def test_names_and_sizes_of_the_released_files() -> None:
    with torch.device("meta"):
        network = I3D()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert sum(p.numel() for p in network.parameters()) == 12_287_264  # 12.29 M
    assert shapes["_model.Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7)
    assert shapes["_model.Mixed_4f.b1b.conv3d.weight"] == (320, 160, 3, 3, 3)
    assert shapes["_model.Mixed_5c.b3b.bn.running_var"] == (128,)
    units = ["Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"]
    units += [f"{name}.{branch}" for name in MIXED for branch in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")]
    ends = [
        "conv3d.weight",
        *(f"bn.{e}" for e in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    ]
    assert shapes.keys() == {f"_model.{unit}.{end}" for unit in units for end in ends}


@pytest.mark.parametrize("size", [(256, 96, 96), (255, 97, 33), (9, 31, 32)])
def test_maps_of_any_size(size: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        network = I3D()
        maps = network(torch.empty(1, 3, *size))
    assert [tuple(m.shape[2:]) for m in maps] == network.map_sizes(*size)
    assert tuple(m.shape[1] for m in maps) == network.out_channels == (832, 1024)
    if size == (256, 96, 96):
        assert network.map_sizes(*size) == [(64, 6, 6), (32, 3, 3)]


def test_zeros_beside_the_map_take_part_in_a_maximum() -> None:
    """Torch's own padding never wins a maximum; TensorFlow's zeros do among negative numbers."""
    x = -torch.ones(1, 1, 4, 5, 4)
    y = same_max_pool(x, (1, 3, 3), (1, 2, 2))
    assert y.shape == (1, 1, 4, 3, 2)
    assert (y[..., 1, 0] == -1).all() and (y[..., 0, :] == 0).all() and (y[..., 2, :] == 0).all()
    assert (y[..., 1, 1] == 0).all()  # an even side is padded behind alone


def test_frozen_statistics() -> None:
    """AFSD trains with BatchNorm in eval mode and its weights as they were."""
    frozen, free = I3D(), I3D(freeze_bn=False)
    for network, kept in ((frozen, True), (free, False)):
        norm = network.train()._model.Conv3d_1a_7x7.bn
        assert norm is not None and norm.training is not kept and norm.weight.requires_grad is not kept
        before = norm.running_mean.clone()
        network._model.Conv3d_1a_7x7(torch.randn(1, 3, 4, 8, 8))
        assert torch.equal(norm.running_mean, before) is kept
        assert network._model.Conv3d_1a_7x7.conv3d.weight.requires_grad
    part = I3D(freeze_bn_affine=False)
    assert part._model.Mixed_5c.b0.bn.weight.requires_grad


def test_branches_are_side_by_side() -> None:
    layer = Inception(4, (2, 3, 5, 1, 2, 4)).eval()
    x = torch.randn(1, 4, 3, 4, 5)
    y = layer(x)
    assert y.shape == (1, 2 + 5 + 2 + 4, 3, 4, 5)
    torch.testing.assert_close(y[:, 2:7], layer.b1b(layer.b1a(x)))
    torch.testing.assert_close(y[:, 9:], layer.b3b(same_max_pool(x, (3, 3, 3), (1, 1, 1))))
