"""The "same" padding: how many zeros, on which side, for every length."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stpt.method.convolutions import Unit1D, Unit3D, same_padding


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "zeros"),
    [(8, 3, 1, (1, 1)), (8, 3, 2, (0, 1)), (9, 3, 2, (1, 1)), (1, 3, 2, (1, 1)), (12, 7, 2, (2, 3)), (8, 1, 2, (0, 0)),
     (8, 2, 1, (0, 1)), (10, 2, 4, (0, 0)), (11, 7, 2, (3, 3))],
)  # fmt: skip
def test_zeros_before_and_after(size: int, kernel: int, stride: int, zeros: tuple[int, int]) -> None:
    assert same_padding(size, kernel, stride) == zeros


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (2, 1), (4, 1), (1, 1)])
@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_unit_over_time(kernel: int, stride: int, length: int) -> None:
    unit, x = Unit1D(3, 4, kernel, stride), torch.randn(2, 3, length)
    padded = F.pad(x, same_padding(length, kernel, stride))
    expected = F.conv1d(padded, unit.conv1d.weight, unit.conv1d.bias, stride)
    assert expected.shape[2] == -(-length // stride)
    torch.testing.assert_close(unit(x), expected)


def test_unit_over_space_and_time() -> None:
    x = torch.randn(1, 2, 4, 5, 6)
    for kernel, zeros in (((3, 5, 6), 1), ((1, 5, 6), 0), ((1, 2, 3), 0)):
        squeeze = Unit3D(2, 3, kernel, spatial_valid=True, norm=False)
        expected = F.conv3d(F.pad(x, (0, 0, 0, 0, zeros, zeros)), squeeze.conv3d.weight, squeeze.conv3d.bias)
        torch.testing.assert_close(squeeze(x), expected)
    unit = Unit3D(2, 3, (3, 3, 3), (2, 2, 2))
    assert unit.conv3d.bias is None
    assert isinstance(unit.bn, nn.BatchNorm3d) and (unit.bn.eps, unit.bn.momentum) == (1e-3, 0.01)
    unit.bn.running_mean, unit.bn.running_var = torch.rand(3), torch.rand(3)
    unit.eval()
    padded = F.pad(x, (0, 1, 1, 1, 0, 1))  # 6 -> (0, 1), 5 -> (1, 1), 4 -> (0, 1)
    normed = (F.conv3d(padded, unit.conv3d.weight, stride=2) - unit.bn.running_mean.view(3, 1, 1, 1)) / (
        unit.bn.running_var.view(3, 1, 1, 1) + 1e-3
    ).sqrt()
    torch.testing.assert_close(unit(x), normed.relu())
