"""AdamW and weights that a step does not use."""

import copy

import pytest
import torch

from focusformer.method.architecture import Architecture, SuperSizes
from focusformer.method.supernet import Supernet
from focusformer.method.unsampled import Unsampled, clear_gradients

SIZES = SuperSizes(16, 3, 2, 1.0, head_dim=8, img_size=8, patch_size=4, num_classes=3, max_relative_position=1)
SHALLOW, DEEP = Architecture(8, (1,), (1.0,)), Architecture(16, (2, 2), (1.0, 1.0))


def stepped(
    network: Supernet, optimizer: torch.optim.Optimizer, architectures: list[Architecture], rule: Unsampled
) -> None:
    """One step of each architecture, on the same images."""
    images = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    for architecture in architectures:
        clear_gradients(optimizer, rule)
        network(images, architecture).square().sum().backward()
        optimizer.step()


def adamw(network: Supernet) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)


@pytest.mark.parametrize("rule", ["decay", "skip"])
def test_a_tensor_never_used_is_left_alone(rule: Unsampled) -> None:
    torch.manual_seed(0)
    network = Supernet(SIZES)
    before = copy.deepcopy(network.state_dict())
    optimizer = adamw(network)
    stepped(network, optimizer, [SHALLOW, SHALLOW], rule)
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith(("blocks.1", "blocks.2")))
    assert all(p.grad is None and not optimizer.state.get(p) for p in network.blocks[1].parameters())
    # A slice of a used tensor that is not used itself decays, whatever the rule.
    assert not torch.equal(after["blocks.0.fc1.weight"][8:], before["blocks.0.fc1.weight"][8:])


def test_a_tensor_used_before_decays_or_waits() -> None:
    for rule, moved in (("decay", True), ("skip", False)):
        torch.manual_seed(0)
        network = Supernet(SIZES)
        optimizer = adamw(network)
        stepped(network, optimizer, [DEEP], rule)  # type: ignore[arg-type]
        before = network.blocks[1].fc1.weight.detach().clone()
        stepped(network, optimizer, [SHALLOW], rule)  # type: ignore[arg-type]
        assert torch.equal(network.blocks[1].fc1.weight, before) != moved


def test_a_resumed_run_decays_alike() -> None:
    """Gradients are not saved; what was used before is told by the optimiser's state."""
    torch.manual_seed(0)
    whole = Supernet(SIZES)
    optimizer = adamw(whole)
    stepped(whole, optimizer, [DEEP], "decay")
    resumed = Supernet(SIZES)
    resumed.load_state_dict(whole.state_dict())
    other = adamw(resumed)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    stepped(whole, optimizer, [SHALLOW, DEEP], "decay")
    stepped(resumed, other, [SHALLOW, DEEP], "decay")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
