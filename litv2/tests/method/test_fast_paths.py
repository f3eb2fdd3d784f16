"""The fast network against the plain one: same outputs in train form, eval form, fused form, on any size."""

import pytest
import torch
from torch import nn

from litv2.bench.plain import plain_logits
from litv2.deployment.fused import fuse
from litv2.models.classifier import LITv2

TINY = dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), num_classes=10)


def stirred(**options: object) -> LITv2:
    """A network whose offsets, norms and biases are not at their starting zeros and ones."""
    model = LITv2(**{**TINY, **options}).double().eval()  # type: ignore[arg-type]
    for name, p in model.named_parameters():
        if "conv_offset" in name:
            nn.init.normal_(p, std=0.3)
        elif p.ndim == 1:
            nn.init.normal_(p, mean=1.0 if name.endswith("weight") else 0.0, std=0.2)
    for name, b in model.named_buffers():
        if name.endswith("running_mean"):
            b.normal_()
        elif name.endswith("running_var"):
            b.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (75, 101)])
@pytest.mark.parametrize(
    "options",
    [dict(alpha=0.9), dict(alpha=0.0), dict(alpha=1.0), dict(alpha=0.5, local_ws=(0, 0, 4, 2)), dict(qkv_bias=False),
     dict(has_msa=(1, 1, 1, 1), local_ws=(4, 2, 3, 1)), dict(dtm="grid_sample"), dict(dtm="deform_conv2d")],
    ids=str,
)  # fmt: skip
def test_equals_plain_form(size: tuple[int, int], options: dict) -> None:
    model, image = stirred(**options), torch.randn(3, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = plain_logits(model, image)
        torch.testing.assert_close(model(image), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(fuse(model)(image), expected, rtol=1e-9, atol=1e-9)


def test_fuse_leaves_the_original_alone() -> None:
    model = stirred()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fuse(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_compiles_whole() -> None:
    """No graph break; the eager backend keeps the test short."""
    model, image = stirred(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(image), model(image))
