"""What the reference files of the criterion cannot show: empty batches, processes, what is kept in memory, NaN."""

import pytest
import torch
from torch import Tensor, distributed

from faseg.method.criterion import Criterion
from faseg.method.matcher import Matcher, Targets
from faseg.method.prediction_heads import Prediction


def outputs(number: int = 3, queries: int = 7) -> tuple[list[Prediction], Tensor]:
    generator = torch.Generator().manual_seed(0)
    parts = [
        [torch.randn(2, queries, n, generator=generator, requires_grad=True) for n in (4, 8)] for _ in range(number)
    ]
    return [Prediction(*each) for each in parts], torch.randn(2, 8, 8, 12, generator=generator, requires_grad=True)


def halves() -> Targets:
    labels = torch.zeros(2, 32, 48, dtype=torch.long)
    labels[:, 16:] = 1
    labels[1] = 255
    return Targets.of_maps(labels)


def test_names_and_weights() -> None:
    predictions, features = outputs()
    criterion = Criterion(3, Matcher(16))
    losses = criterion(predictions, features, halves())
    assert list(losses) == [f"loss_{kind}{end}" for end in ("", "_0", "_1") for kind in ("ce", "mask", "dice")]
    weighed = criterion.weigh(losses)
    assert weighed["loss_ce_0"] == 2 * losses["loss_ce_0"] and weighed["loss_dice_1"] == 5 * losses["loss_dice_1"]


def test_a_batch_without_masks_has_no_mask_loss() -> None:
    predictions, features = outputs()
    losses = Criterion(3, Matcher(16))(predictions, features, Targets.of_maps(torch.full((2, 32, 48), 255)))
    assert all((loss == 0) == ("_ce" not in name) for name, loss in losses.items())
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert features.grad is not None and not features.grad.any()  # zeros, so that processes can add them


def test_masks_are_counted_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda count: count.add_(5))
    assert Criterion(3).count_masks(halves()) == (2 + 5) / 2


def test_no_map_of_all_queries_is_kept() -> None:
    """The largest tensor that is saved for the backward pass is that of the matched pairs or the features."""
    predictions, features = outputs(queries=100)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        Criterion(3, Matcher(16))(predictions, features, halves())
    assert max(kept) <= features.numel() < 2 * 100 * 8 * 12


def test_predictions_that_are_not_numbers_reach_the_loss() -> None:
    """The training's guard must see them; the solver must not end the run with a trace."""
    predictions, features = outputs(1)
    losses = Criterion(3, Matcher(16))(predictions, features * torch.nan, halves())
    assert losses["loss_mask"].isnan()


def test_defaults_are_the_papers() -> None:
    """What a user gets who names no option (the configs name none)."""
    criterion = Criterion(3)
    assert criterion.empty_weight.tolist() == pytest.approx([1, 1, 1, 0.1])
    assert criterion.weights == {"loss_ce": 2, "loss_mask": 5, "loss_dice": 5}
    assert (criterion.oversample, criterion.importance, criterion.matcher.num_points) == (3, 0.75, 12544)
