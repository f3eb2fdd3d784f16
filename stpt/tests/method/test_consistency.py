"""The triplet loss of three maps by hand."""

import pytest
import torch

from stpt.method.consistency import triplet


def test_margin_of_each_map_weighted() -> None:
    """Distances 5 and 5 on the first map, 0 and 2 on the second (below the margin), 1 and 0.5 on the third."""
    anchors = [torch.zeros(1, 2)] * 3
    positives = [torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])]
    negatives = [torch.tensor([[4.0, 3.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([[0.5, 0.0]])]
    assert float(triplet(anchors, positives, negatives)) == pytest.approx(1.0 + 0.1 * 1.5, abs=1e-5)
    assert float(triplet(anchors, positives, negatives, weights=(0, 0, 2), margin=2)) == pytest.approx(5, abs=1e-5)


def test_mean_over_clips_in_float32() -> None:
    anchor, positive, negative = torch.randn(3, 4, 8)
    alone = [triplet([a[None]], [p[None]], [n[None]], (1,)) for a, p, n in zip(anchor, positive, negative, strict=True)]
    together = triplet([anchor], [positive], [negative], (1,))
    torch.testing.assert_close(together, torch.stack(alone).mean())
    assert triplet([anchor.bfloat16()], [positive.bfloat16()], [negative.bfloat16()], (1,)).dtype == torch.float32
