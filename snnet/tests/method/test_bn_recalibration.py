"""BatchNorm statistics per configuration: what they are, when they are in place, and that they leave no trace."""

from pathlib import Path

import pytest
import torch
from made import build
from torch import Tensor

from paperkit.errors import UserError
from snnet.method.bn_recalibration import recalibrate
from snnet.method.statistics import StitchStatistics
from snnet.method.stitching import StitchedNetwork

families = pytest.mark.parametrize("name", ["LeViT", "ResNet", "ResNet to Swin"])


def statistics(network: StitchedNetwork) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def recalibrated(name: str, ids: list[int]) -> tuple[StitchedNetwork, Tensor]:
    network, x = build(name)
    batches = [torch.randn(8, *x.shape[1:]) for _ in range(2)]
    network.statistics = recalibrate(network, batches, ids)
    return network, x


@families
def test_estimation_leaves_the_network_as_it_was(name: str) -> None:
    network, x = build(name)
    before, modes = statistics(network), [module.training for module in network.modules()]
    recalibrate(network, [torch.randn(8, *x.shape[1:])], [0, 2])
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert modes == [module.training for module in network.modules()]
    assert all(m.momentum == 0.1 for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))


@families
def test_own_statistics_come_and_go_with_the_id(name: str) -> None:
    """Id 2 has its own, id 3 has none: switching to and fro gives each its own logits, whichever was run before."""
    network, x = build(name)
    with torch.no_grad():
        plain = {i: network(x, i) for i in (2, 3)}
        network.statistics = recalibrate(network, [torch.randn(8, *x.shape[1:])], [2])
        before = statistics(network)
        own = network.set_stitch(2)(x)
        assert not torch.allclose(own, plain[2], rtol=1e-3)
        torch.testing.assert_close(network.set_stitch(3)(x), plain[3], rtol=0, atol=0)
        torch.testing.assert_close(network.set_stitch(2)(x), own, rtol=0, atol=0)
        torch.testing.assert_close(dict(network.forward_many(x, [3, 2]))[2], own, rtol=0, atol=0)
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
        network.statistics = None
        torch.testing.assert_close(network(x, 2), plain[2], rtol=0, atol=0)


def test_they_are_the_means_and_variances_of_what_the_configuration_sees() -> None:
    network, x = build("ResNet")
    batches = [torch.randn(8, *x.shape[1:]) for _ in range(3)]
    found = recalibrate(network, batches, [4]).by_id[4]
    stem = network.anchors[0].conv1
    with torch.no_grad():
        maps = [stem(batch) for batch in batches]
    mean = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    variance = torch.stack([m.var((0, 2, 3), unbiased=True) for m in maps]).mean(0)
    torch.testing.assert_close(found["anchors.0.bn1.running_mean"], mean)
    torch.testing.assert_close(found["anchors.0.bn1.running_var"], variance)
    assert not any(key.startswith("anchors.1.layer1") for key in found)  # not on the route of a stitch in stage 1


def test_training_ignores_and_does_not_touch_them() -> None:
    network, x = recalibrated("ResNet", [2])
    assert network.statistics is not None
    kept = {key: value.clone() for key, value in network.statistics.by_id[2].items()}
    running = network.anchors[0].bn1.running_mean.clone()
    network.train()(x, 2)
    assert not torch.equal(network.anchors[0].bn1.running_mean, running)
    assert all(torch.equal(value, kept[key]) for key, value in network.statistics.by_id[2].items())


def test_they_are_restored_after_an_error() -> None:
    network, x = recalibrated("ResNet", [2])
    before = statistics(network)
    with pytest.raises(RuntimeError):
        network(x[:, :2], 2)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_saved_beside_the_weights(tmp_path: Path) -> None:
    network, x = recalibrated("LeViT", [2, 4])
    assert network.statistics is not None
    own = network(x, 4)
    network.statistics.save(tmp_path / "statistics.safetensors")
    network.statistics = StitchStatistics.load(tmp_path / "statistics.safetensors", network)
    assert sorted(network.statistics.by_id) == [2, 4]
    torch.testing.assert_close(network(x, 4), own, rtol=0, atol=0)
    with pytest.raises(UserError, match="statistics of another network"):
        StitchStatistics.load(tmp_path / "statistics.safetensors", build("ResNet")[0])


def test_refused() -> None:
    network, x = build("Swin")
    with pytest.raises(UserError, match="no BatchNorm"):
        recalibrate(network, [x], [0])
    with pytest.raises(UserError, match="at least one batch"):
        recalibrate(build("LeViT")[0], [], [0])
