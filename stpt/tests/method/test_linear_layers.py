"""Linear layers give the same whichever library computes them, and oneDNN only where it may."""

import pytest
import torch
from torch.nn import functional as F

from stpt.method import linear_layers
from stpt.method.linear_layers import FeedForward, by_onednn

onednn = pytest.mark.skipif(not linear_layers._HAS_ONEDNN, reason="torch without oneDNN")


@onednn
def test_both_libraries_agree() -> None:
    part = FeedForward(24, 96)
    for shape in ((2, 3, 4, 5, 24), (1, 24), (7, 24)):
        x = torch.randn(shape)
        plain = F.linear(F.gelu(F.linear(x, part.fc1.weight, part.fc1.bias)), part.fc2.weight, part.fc2.bias)
        assert torch.equal(part(x), plain)  # with gradients: torch's own way
        with torch.no_grad():
            assert by_onednn(x, part.fc1.weight)
            torch.testing.assert_close(part(x), plain, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(part(x[..., :1].expand_as(x)), part(x[..., :1].repeat_interleave(24, -1)))


@onednn
def test_what_is_left_to_torch() -> None:
    x, weight = torch.randn(2, 8), torch.randn(4, 8)
    assert not by_onednn(x, weight)
    with torch.no_grad():
        assert by_onednn(x, weight)
        assert not by_onednn(x.double(), weight.double()) and not by_onednn(x.to("meta"), weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert not by_onednn(x, weight)
        torch.set_float32_matmul_precision("medium")
        try:
            assert not by_onednn(x, weight)
        finally:
            torch.set_float32_matmul_precision("highest")
        program = torch.export.export(FeedForward(8, 16).eval(), (x,))
    assert "mkldnn" not in str(program.graph) and "gelu" in str(program.graph)
