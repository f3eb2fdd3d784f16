"""Sharpness-aware minimisation against its two lines of algebra, and what both of its passes see."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paperkit.training.classification import make_mixup
from paperkit.training.switches import SAM


def quadratic(w: Tensor, scale: Tensor) -> Tensor:
    return 0.5 * (scale * w**2).sum()


def test_one_step_is_the_algorithm() -> None:
    """With f = sum s w^2 / 2: g = s w, the way up e = rho g / |g|, the step w - lr s (w + e)."""
    scale, start = torch.tensor([1.0, 4.0, 0.5]), torch.tensor([1.0, -2.0, 3.0])
    w = nn.Parameter(start.clone())
    untouched = nn.Parameter(torch.ones(2))
    optimizer = SAM(torch.optim.SGD([w, untouched], lr=0.1), rho=0.3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = quadratic(w, scale)
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    gradient = scale * start
    up = start + 0.3 * gradient / gradient.norm()
    torch.testing.assert_close(w.detach(), start - 0.1 * scale * up)
    assert loss.item() == pytest.approx(quadratic(start, scale).item()), "the loss at w, not on the way"
    assert torch.equal(untouched.detach(), torch.ones(2))


def test_both_passes_see_the_same_random_numbers_and_images() -> None:
    torch.manual_seed(0), np.random.seed(0)
    w = nn.Parameter(torch.ones(3))
    optimizer = SAM(torch.optim.SGD([w], lr=0.1), rho=0.1)
    mix = make_mixup(0.8, 0.0, 0.0, 0.1, 5)
    assert mix is not None
    images, labels = torch.rand(4, 1, 2, 2), torch.arange(4)
    before = images.clone()
    seen: list[tuple[Tensor, ...]] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        seen.append((torch.rand(2), torch.from_numpy(np.random.rand(2)), *mix(images, labels)))
        loss = (w * seen[-1][0].sum()).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.step(closure)
    assert torch.equal(images, before), "mixed on a copy"
    first, second, third, _ = seen
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], third[0]), "and the next step draws anew"


def test_state_is_the_base_optimisers() -> None:
    """Saved and loaded, both optimisers go on alike, and a change of the rate reaches the base."""

    def run(steps: int, state: dict | None = None, weights: Tensor | None = None) -> tuple[nn.Parameter, SAM]:
        w = nn.Parameter(torch.tensor([1.0, -2.0]) if weights is None else weights.clone())
        optimizer = SAM(torch.optim.AdamW([w], lr=0.1), rho=0.05)
        if state is not None:
            optimizer.load_state_dict(state)
        for group in optimizer.param_groups:
            group["lr"] = 0.05

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = quadratic(w, torch.tensor([1.0, 3.0]))
            loss.backward()
            return loss

        for _ in range(steps):
            optimizer.step(closure)
        return w, optimizer

    whole, _ = run(5)
    half, optimizer = run(3)
    resumed, again = run(2, optimizer.state_dict(), half.detach())
    assert torch.equal(whole, resumed)
    assert again.base.param_groups[0]["lr"] == 0.05 and again.state is again.base.state


def test_needs_a_closure() -> None:
    with pytest.raises(TypeError, match="closure"):
        SAM(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), 0.1).step()
