"""Matching against a plain loop over queries and masks; what is not finite does not stop the solver."""

import torch
from torch import Tensor
from torch.nn import functional as F

from faseg.method.matcher import Matcher, Targets, sample_points


def example(classes: int = 3, queries: int = 6) -> tuple[Tensor, Tensor, Tensor, Targets]:
    generator = torch.Generator().manual_seed(0)
    logits, embeddings = (torch.randn(2, queries, n, generator=generator) for n in (classes + 1, 4))
    labels = torch.full((2, 32, 48), 255)
    labels[0, :16], labels[0, 16:, :20], labels[1, 5:9, 7:40] = 0, 2, 1
    return logits, embeddings, torch.randn(2, 4, 8, 12, generator=generator), Targets.of_maps(labels)


def test_targets_are_the_classes_present() -> None:
    *_, targets = example()
    assert targets.counts == (2, 1)
    assert targets.labels[0].tolist() == [0, 2] and targets.labels[1, 0] == 1
    assert targets.masks[:, 0].sum((1, 2)).tolist() == [16 * 48, 4 * 33]


def test_costs_are_those_of_full_maps() -> None:
    """The products of mask embeddings with sampled features, against maps that are made and then sampled."""
    logits, embeddings, features, targets = example()
    points = torch.rand(2, 50, 2, generator=torch.Generator().manual_seed(1)) * 1.2 - 0.1  # some lie outside
    costs = Matcher(50).costs(logits, embeddings, features, targets, points)
    maps = sample_points((embeddings @ features.flatten(2)).unflatten(2, (8, 12)), points)
    wanted = sample_points(targets.masks, points)
    for b, count in enumerate(targets.counts):
        for q in range(6):
            for t in range(count):
                m, y = maps[b, q], wanted[b, t]
                s = m.sigmoid()
                torch.testing.assert_close(costs.masks[b, q, t], F.binary_cross_entropy_with_logits(m, y))
                dice = 1 - (2 * (s * y).sum() + 1) / (s.sum() + y.sum() + 1)
                torch.testing.assert_close(costs.dice[b, q, t], dice)
                torch.testing.assert_close(costs.classes[b, q, t], -logits[b, q].softmax(0)[targets.labels[b, t]])


def test_costs_that_are_not_finite_still_match() -> None:
    cost = torch.tensor([[[1.0, torch.nan], [torch.inf, 0.0], [-torch.inf, 3.0]], [[2.0, 9.0], [1.0, 9.0], [3.0, 9.0]]])
    pairs = Matcher().assign(cost, (2, 1))
    assert [each.tolist() for each in pairs[0]] == [[1, 2], [1, 0]]
    assert [each.tolist() for each in pairs[1]] == [[1], [0]]


def test_more_masks_than_queries() -> None:
    queries, masks = Matcher().assign(torch.tensor([[[3.0, 1.0, 2.0]]]), (3,))[0]
    assert queries.tolist() == [0] and masks.tolist() == [1]
