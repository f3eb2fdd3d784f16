"""Anchors taken apart run as timm runs them whole; stitches need what they own, no more; misfits are refused."""

import copy

import pytest
import timm
import torch
from made import NETWORKS, build, levit, resnet, swin, vit
from torch import nn

from paperkit.errors import UserError
from snnet.method.enumeration import LayerAssignment
from snnet.method.least_squares import initialise
from snnet.method.stitching import StitchedNetwork

every_family = pytest.mark.parametrize("name", NETWORKS)


@every_family
def test_anchor_alone_is_timms_model(name: str) -> None:
    network, x = build(name)
    with torch.no_grad():
        for i, anchor in enumerate(network.anchors):
            torch.testing.assert_close(network(x, i), anchor(x), rtol=1e-5, atol=1e-6)


@every_family
def test_shared_prefixes_change_nothing(name: str) -> None:
    network, x = build(name)
    with torch.no_grad():
        found = dict(network.forward_many(x, range(network.num_configurations)))
        for i in range(network.num_configurations):
            torch.testing.assert_close(found[i], network(x, i), rtol=0, atol=0)
    assert not torch.allclose(found[len(network.anchors)], found[1])  # a stitch is not its end anchor


@every_family
def test_a_configuration_depends_on_all_it_owns_and_on_nothing_else(name: str) -> None:
    """NaN in every key outside leaves its logits as they are; NaN in every parameter inside, one by one, does not."""
    network, x = build(name)
    chosen = network.num_configurations - 1
    names = set(network.state_dict())
    used = network.names_used(network.routes[chosen], names)
    with torch.no_grad():
        expected = network(x, chosen)
        poisoned = copy.deepcopy(network)
        for key in names - used:
            value = poisoned.state_dict()[key]
            value.fill_(float("nan") if value.is_floating_point() else 0)
        torch.testing.assert_close(poisoned(x, chosen), expected, rtol=0, atol=0)
        for key in sorted(used)[:: max(1, len(used) // 25)]:
            value = network.state_dict()[key]
            if value.is_floating_point():
                kept = value.clone()
                value.fill_(float("nan"))
                assert network(x, chosen).isnan().any(), key
                value.copy_(kept)


@every_family
def test_least_squares_explains_what_the_end_anchor_expects(name: str) -> None:
    """A relative residual of 1 is what zeros leave. (The mean of several cuts' solutions may leave more.)"""
    network, x = build(name)
    images = [torch.randn(8, *x.shape[1:]) for _ in range(2)]
    assert all(fit.residual < 1 for fit in initialise(network, images).values() if len(fit.cuts) == 1)
    assert all(fit.residual < 1 for fit in initialise(network, images, "gram", "joint").values())


@every_family
def test_streamed_products_give_the_same_layers(name: str) -> None:
    network, x = build(name)
    images = torch.randn(16, *x.shape[1:])
    pinv, gram = initialise(network, [images]), initialise(network, images.split(4), solver="gram")
    for step, fit in gram.items():
        assert fit.residual <= pinv[step].residual + 1e-4


def test_levits_cached_biases_are_never_stale() -> None:
    """timm gathers attention biases once in eval mode; weights loaded or stepped there must be seen all the same."""
    network, x = build("LeViT")
    with torch.no_grad():
        before = network(x, 1)
        for key, value in network.state_dict().items():
            if key.endswith("attention_biases"):
                value.mul_(-3)
        changed = network(x, 1)
        fresh = copy.deepcopy(network).train().eval()
        torch.testing.assert_close(changed, fresh(x, 1), rtol=0, atol=0)
    assert not torch.allclose(before, changed)
    network(x, 3).sum().backward()
    copy.deepcopy(network)  # fails if a cache still holds the graph


def test_levit_has_two_heads_in_training_and_their_mean_in_evaluation() -> None:
    network, x = build("LeViT")
    mean = network(x, 2)
    network.anchors[1].head.train(True)
    for module in network.modules():
        module.training = isinstance(module, timm.models.levit.LevitDistilled)  # heads in training, BatchNorm not
    by_label, by_teacher = network(x, 2)
    torch.testing.assert_close((by_label + by_teacher) / 2, mean)
    assert not torch.allclose(by_label, by_teacher)


def test_mixed_network_stitches_the_stages_of_resnet() -> None:
    network, _ = build("ResNet to Swin")
    assert {configuration.stage for configuration in network.configurations} == {None, 1, 2}
    layer = network.stitch_layers[0][0][0].transform
    assert isinstance(layer, nn.Conv2d) and layer.weight.shape == (16, 8, 1, 1)


@pytest.mark.parametrize(("assignment", "layers"), [("released", (0, 0, 0, 1, 1)), ("aligned", (0, 0, 1, 1, 1))])
def test_layer_assignment(assignment: LayerAssignment, layers: tuple[int, ...]) -> None:
    """The released code shifts the layers of unequal depths by one pair; 2 to 6 blocks, stage 2."""
    network = StitchedNetwork([swin(4), swin(8, third=6)], layer_assignment=assignment)
    assert network.pairs[2, 0, 1].layer_of == layers


class Unknown(nn.Module):
    pass


@pytest.mark.parametrize(
    ("anchors", "message"),
    [
        ([], "at least one anchor"),
        ([Unknown()], "no family of anchors takes a Unknown"),
        ([levit((8, 8, 16), use_conv=True)], "linear, not conv"),
        ([vit(12), vit(8)], "from fast to slow: anchor 0"),
        ([vit(8), vit(12, image=32)], "lay out their activations differently: 16x16 at stride 8"),
        ([swin(4), swin(8, image=64)], "lay out their activations differently"),
        ([vit(8), swin(8)], "a plain ViT (anchor 0) does not stitch to a Swin"),
        ([swin(4), resnet((2, 2, 2, 2))], "a Swin (anchor 0) does not stitch to a ResNet"),
        ([resnet((2, 2, 2, 2)), swin(16)], "lay out their activations differently: any image at stride 4/8/16/32"),
        ([vit(8, depth=4), vit(16, depth=3)], "must not get shallower: anchor 0 has 4 blocks, anchor 1 has 3"),
        ([swin(4, third=4), swin(8)], "anchor 0 has 4 blocks in stage 2, anchor 1 has 2"),
    ],
)
def test_refused(anchors: list[nn.Module], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        StitchedNetwork(anchors)
    assert message in str(refusal.value)
