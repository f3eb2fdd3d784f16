"""Scores of one bit by other methods: BiBERT's bool, the naive sign of the softmax, and BiT's elastic probabilities.

Also the quantisers that stand unused in the released file: bool with one scale, and one-hot. All map logits (..., N, M)
to scores of the same shape.
"""

import torch
from torch import Tensor, nn

from bivit.method.elastic import Elastic
from bivit.method.softmax_aware import past_softmax, through_softmax


def bool_scores(logits: Tensor) -> Tensor:
    """BiBERT's `bool`: 1 where the logit is above 0; the gradient straight to the logits, where |l| < 1."""
    return past_softmax(logits, (logits.detach() > 0).to(logits.dtype))


def scaled_bool_scores(logits: Tensor) -> Tensor:
    """`bool` times the mean positive logit of the WHOLE tensor (0 without one); gradient as of `bool`, unscaled."""
    positive = logits.detach().clamp(min=0)
    active = (positive > 0).to(logits.dtype)
    return past_softmax(logits, active * (positive.sum() / active.sum().clamp(min=1)))


def onehot_scores(logits: Tensor) -> Tensor:
    """1 at the first largest logit of each row; gradient as of `bool`."""
    values = logits.detach()
    first = (values == values.amax(-1, keepdim=True)).to(torch.uint8).argmax(-1, keepdim=True)
    return past_softmax(logits, torch.zeros_like(values).scatter_(-1, first, 1.0))


class BoolScores(nn.Module):
    """`bool_scores` as a layer."""

    def forward(self, logits: Tensor) -> Tensor:
        """(..., N, M), kept."""
        return bool_scores(logits)


class NaiveScores(nn.Module):
    """sign(softmax): all ones, so that every query gets the same sum. The gradient goes through the softmax."""

    def forward(self, logits: Tensor) -> Tensor:
        """(..., N, M), kept."""
        scores = logits.softmax(-1)
        return through_softmax(scores, scores.detach().sign())


class ElasticScores(Elastic):
    """BiT: the softmax in two values, 0 and a learned alpha."""

    def __init__(self) -> None:
        super().__init__(signed=False)

    def forward(self, logits: Tensor) -> Tensor:
        """(..., N, M), kept."""
        return super().forward(logits.softmax(-1))
