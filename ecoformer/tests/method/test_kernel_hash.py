"""The hash: its two forms agree, gradients pass through sigma, padding and zero vectors are safe."""

import pytest
import torch
from made import tokens

from ecoformer.method.hash_fit import FitOptions, fit_layer
from ecoformer.method.kernel_hash import KernelHash, bandwidth, normalise, squared_distances
from paperkit.errors import UserError


def fitted(u: torch.Tensor, nbits: int = 8, supports: int = 6) -> KernelHash:
    layer = KernelHash(u.shape[1], u.shape[3], nbits, supports)
    fit_layer(layer, u, FitOptions(topk=4, iterations=3))
    return layer


def test_distances_and_sigma_are_those_of_the_difference_form() -> None:
    u = tokens().double()
    anchor = u[:1, :, :5] + 0.1
    direct = (u[:, :, :, None] - anchor[:, :, None]).square().sum(-1)
    torch.testing.assert_close(squared_distances(u, anchor), direct)
    torch.testing.assert_close(bandwidth(u, anchor), direct.mean((2, 3)))


def test_masked_sigma_is_that_of_the_tokens_alone() -> None:
    u = tokens()
    mask = torch.ones(2, 24, dtype=torch.bool)
    mask[1, 10:] = False
    layer = fitted(u)
    whole = layer.steps(u, mask)
    alone = layer.steps(u[1:, :, :10])
    torch.testing.assert_close(whole.sigma[1:], alone.sigma)
    torch.testing.assert_close(whole.codes[1:, :, :10], alone.codes)
    assert (whole.codes[1, :, 10:] == 0).all()


def test_gradient_passes_through_sigma() -> None:
    """A token that no code of the sum belongs to has a gradient, which only sigma can bring."""
    u = tokens().requires_grad_()
    layer = fitted(u.detach())
    layer(u)[:, :, 0].sum().backward()
    assert u.grad is not None and u.grad[:, :, 1:].abs().max() > 0


def test_causal_sigma_comes_from_the_past() -> None:
    u = tokens()
    layer = fitted(u)
    later = u.clone()
    later[:, :, 12:] = tokens(seed=1)[:, :, 12:]
    a, b = layer.steps(u, causal=True), layer.steps(later, causal=True)
    assert torch.equal(a.sigma[..., :12], b.sigma[..., :12]) and torch.equal(a.codes[:, :, :12], b.codes[:, :, :12])
    assert not torch.equal(a.sigma[..., 12:], b.sigma[..., 12:])
    torch.testing.assert_close(a.sigma[..., -1], layer.steps(u).sigma)


def test_zero_vectors_are_no_numbers_trouble() -> None:
    x = torch.randn(1, 2, 24, 8)
    x[:, :, 3] = 0
    x.requires_grad_()
    u = normalise(x)
    assert (u[:, :, 3] == 0).all()
    layer = fitted(u.detach())
    layer(u).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and x.grad.abs().max() < 1e6


def test_flag_is_saved_and_inferred() -> None:
    u = tokens()
    layer, other = fitted(u), KernelHash(2, 8, 8, 6)
    assert not other.is_fitted
    other.load_state_dict(layer.state_dict())
    assert other.is_fitted and bool(other.fitted)
    released = {key: value for key, value in layer.state_dict().items() if key != "fitted"}
    third = KernelHash(2, 8, 8, 6)
    third.load_state_dict(released)
    assert third.is_fitted
    released["anchor"] = torch.zeros_like(released["anchor"])
    third.load_state_dict(released)
    assert not third.is_fitted and not bool(third.fitted)


@pytest.mark.parametrize("bits", [1, 5, 7, 33])
def test_odd_bits(bits: int) -> None:
    u = tokens()
    codes = fitted(u, bits)(u)
    assert codes.shape[-1] == bits and set(codes.unique().tolist()) <= {-1.0, 1.0}


def test_trainable_projection_gets_a_gradient() -> None:
    layer = KernelHash(2, 8, 8, 6, trainable=True)
    layer.set_fit(torch.randn(2, 8, 6) * 0.1, torch.zeros(1, 2, 1, 6), tokens()[:1, :, :6])
    layer(tokens()).sum().backward()
    assert isinstance(layer.A, torch.nn.Parameter) and layer.A.grad is not None and layer.A.grad.abs().max() > 0


def test_no_bits_are_refused() -> None:
    with pytest.raises(UserError, match="a hash of 0 bits over 25 supports"):
        KernelHash(1, 8, 0)
