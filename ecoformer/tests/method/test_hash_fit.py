"""The fit: closed gradient and sparse residual against a dense loop with autograd; options; what is refused."""

import pytest
import torch
from made import tokens
from torch import Tensor

from ecoformer.method.hash_fit import FitOptions, draw_supports, fit_hash
from ecoformer.method.similarity import labels_from_dense, pair_labels
from paperkit.errors import UserError


def dense_fit(
    kernel: Tensor, labels: Tensor, start: Tensor, lr: float, iterations: int, nesterov: bool = True
) -> Tensor:
    """The released loop, dense and by autograd."""
    A, bits, tokens_ = start.clone(), start.shape[1], kernel.shape[2]
    residual = bits * labels

    def loss(y: Tensor) -> Tensor:
        return (-(y[..., None, :] @ residual @ y[..., None]).flatten(2) / (tokens_ * bits)).mean()

    for r in range(bits):
        a = A[:, r].clone().requires_grad_()
        optimizer = torch.optim.SGD([a], lr=lr, momentum=0.9, nesterov=nesterov)
        for _ in range(iterations):
            optimizer.zero_grad()
            loss(2 / (1 + torch.exp(-(kernel @ a[..., None])[..., 0])) - 1).backward()
            optimizer.step()
        hard = [
            torch.where((kernel @ v[..., None])[..., 0] > 0, 1.0, -1.0).to(kernel.dtype) for v in (A[:, r], a.detach())
        ]
        better = loss(hard[1]) < loss(hard[0])
        A[:, r] = a.detach() if better else A[:, r]
        kept = hard[1] if better else hard[0]
        residual = residual - kept[..., None] * kept[..., None, :]
    return A


@pytest.mark.parametrize(("lr", "nesterov"), [(0.0005, True), (0.5, True), (0.5, False)])
def test_same_projection_as_the_dense_loop(lr: float, nesterov: bool) -> None:
    u, start = tokens(2, 3, 40).double(), torch.randn(3, 7, 5).double()
    fit = fit_hash(u, start, FitOptions(lr=lr, iterations=20, topk=4, nesterov=nesterov))
    expected = dense_fit(fit.kernel, pair_labels(u, 4).dense(), start, lr, 20, nesterov)
    torch.testing.assert_close(fit.A, expected, rtol=1e-9, atol=1e-9)


def test_labels_of_few_tokens() -> None:
    """The k least overwrite the k most: with fewer than 2k tokens some +1 turn."""
    u = tokens(1, 1, 6)
    labels = pair_labels(u, 4).dense()
    assert ((labels == -1).sum(-1) == 4).all() and ((labels == 1).sum(-1) == 2).all()
    with pytest.raises(UserError, match="6 tokens cannot have 7 most similar ones"):
        pair_labels(u, 7)
    torch.testing.assert_close(labels_from_dense(labels).dense(), labels)


def test_labels_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    u = tokens()
    whole = pair_labels(u, 4).dense()
    monkeypatch.setattr("ecoformer.method.similarity.ROWS_AT_ONCE", 500)
    assert torch.equal(pair_labels(u, 4).dense(), whole)


@pytest.mark.parametrize("options", [FitOptions(topk=4), FitOptions("adam", topk=4, per_head=True, supports="batch")])
def test_padding_changes_nothing(options: FitOptions) -> None:
    """A fit of samples with padding is that of the samples without, whatever the padding holds."""
    u, start = tokens(2, 2, 24), torch.randn(2, 6, 5)
    anchor, mask = u[:1, :, :5], torch.ones(2, 24, dtype=torch.bool)
    mask[:, 18:] = False
    noise = u.clone()
    noise[:, :, 18:] = 7 * torch.randn(2, 2, 6, 8)
    short = fit_hash(u[:, :, :18], start, options, anchor=anchor)
    padded = fit_hash(noise, start, options, anchor=anchor, mask=mask)
    torch.testing.assert_close(padded.A, short.A, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(padded.mvec, short.mvec)
    assert torch.equal(padded.codes[:, :, :18], short.codes) and (padded.codes[:, :, 18:] == 0).all()


def test_working_fit_lowers_the_objective() -> None:
    """Adam's codes fit the labels better than random ones; the released rate hardly moves."""
    u, start = tokens(4, 2, 64, 16), torch.randn(2, 16, 12)
    labels = pair_labels(u, 6).dense()

    def error(options: FitOptions) -> float:
        fit = fit_hash(u, start, options, anchor=u[:1, :, :12])
        return ((fit.codes @ fit.codes.mT / 16 - labels) ** 2).mean().item()

    random, adam = error(FitOptions("random", topk=6)), error(FitOptions("adam", topk=6))
    spectral = error(FitOptions("adam", topk=6, init="spectral", per_head=True))
    assert adam < 0.9 * random and spectral < 0.9 * random


def test_acceptance_per_head() -> None:
    fit = fit_hash(tokens(), torch.randn(2, 6, 5), FitOptions("adam", topk=4, per_head=True, iterations=20))
    assert fit.accepted.shape == (6, 2) and torch.equal(fit.accepted, fit.loss_after < fit.loss_before)


def test_same_seed_same_fit() -> None:
    fits = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(3)
        start = torch.ones(2, 6, 5)
        fits.append(fit_hash(tokens(), start, FitOptions("adam", topk=4, iterations=10), generator=generator))
    assert torch.equal(fits[0].A, fits[1].A) and torch.equal(fits[0].anchor, fits[1].anchor)


@pytest.mark.parametrize("how", ["first", "batch", "kmeans"])
def test_supports(how: str) -> None:
    u = tokens(3, 2, 10)
    anchor = draw_supports(u, 6, how)
    assert anchor.shape == (1, 2, 6, 8)
    torch.testing.assert_close(anchor.norm(dim=-1), torch.ones(1, 2, 6))
    with pytest.raises(UserError, match="tokens and the hash 40 supports: take"):
        draw_supports(u, 40, how)


def test_more_supports_than_labels_and_fewer() -> None:
    """Supports and labels are numbers of their own: 3 supports with 8 labels fit."""
    assert torch.isfinite(fit_hash(tokens(), torch.randn(2, 6, 3), FitOptions(topk=8, iterations=3)).A).all()


def test_impossible_options() -> None:
    with pytest.raises(UserError, match="fit method 'sgd' is none of released, adam, random"):
        FitOptions("sgd")
    with pytest.raises(UserError, match="became NaN at bit 1 of 4"):
        fit_hash(tokens(), torch.full((2, 4, 5), torch.nan), FitOptions(topk=4, iterations=2))
