"""VPT-Deep and AdaptFormer: what they change, and where they start."""

import torch
from made import batches, tiny_vit

from spt.models.baselines import add_bottlenecks, add_prompts


def test_prompts_are_seen_and_leave() -> None:
    images = batches()[0][0]
    plain = tiny_vit().eval()(images)
    model = add_prompts(tiny_vit(), 3).eval()
    assert model.forward_features(images).shape == (6, 17, 32)
    assert not torch.allclose(model(images), plain, atol=1e-5)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained == ["head.weight", "head.bias", "prompts.tokens"]


def test_bottlenecks_start_at_nothing_and_learn() -> None:
    images, labels = batches()[0]
    model = add_bottlenecks(tiny_vit(), 8).eval()
    torch.testing.assert_close(model(images), tiny_vit().eval()(images))
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    assert all(float(layer.weight.grad.abs().sum()) > 0 for layer in model.bottlenecks.up)
