"""Class scores from queries by hand."""

import pytest
import torch

from faseg.method import semantic_inference
from faseg.method.semantic_inference import semantic_scores


def test_no_object_gives_nothing() -> None:
    """One query that is sure of class 1 and its mask, one that is sure of no object: only the first counts."""
    logits = torch.tensor([[-50.0, 50.0, -50.0], [-50.0, -50.0, 50.0]])
    masks = torch.full((2, 2, 2), -50.0)
    masks[0, :, 1], masks[1] = 50.0, 50.0
    scores = semantic_scores(logits, masks, (2, 2), (2, 2))
    torch.testing.assert_close(scores, torch.tensor([[[0.0, 0.0]] * 2, [[0.0, 1.0]] * 2]))


def test_padding_is_cut_before_resizing() -> None:
    """What lies in the padded part does not reach the picture."""
    torch.manual_seed(0)
    logits, masks = torch.randn(3, 5), torch.randn(3, 4, 4)
    whole = semantic_scores(logits, masks, (4, 4), (3, 2), (6, 4))
    masks[:, 3:], masks[:, :, 2:] = 9.0, 9.0
    torch.testing.assert_close(semantic_scores(logits, masks, (4, 4), (3, 2), (6, 4)), whole)


@pytest.mark.parametrize("held", [1, 3 * 21 * 4, 2**20])
def test_rows_at_a_time_equal_whole_masks(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row at a time, four, all; a ratio that is no whole number too."""
    monkeypatch.setitem(semantic_inference.SCRATCH, "cpu", held)
    torch.manual_seed(0)
    logits, masks = torch.randn(3, 5), torch.randn(3, 8, 6)
    for padded in ((32, 24), (27, 22)):
        lean = semantic_scores(logits, masks, padded, (26, 21))
        torch.testing.assert_close(lean, semantic_scores(logits, masks, padded, (26, 21), resized="masks"))
