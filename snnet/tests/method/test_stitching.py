"""One module, one integer: switching, prefixes, heads, checkpointing, extraction, saving, models of one's own."""

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from made import NETWORKS, K, build, randomise, vit
from torch import Tensor, nn

from paperkit.errors import UserError
from snnet.deployment.extraction import SubNetwork
from snnet.method.counting import parameters
from snnet.method.stitching import StitchedNetwork, mean_logits
from snnet.models.anchors import SNNet, load_folder, stitch

every_family = pytest.mark.parametrize("name", NETWORKS)
TWO_VITS = [
    {"name": "vit_tiny_patch16_224", "img_size": 16, "patch_size": 8, "embed_dim": w, "depth": 2, "num_heads": 2}
    for w in (8, 12)
]


def state(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    now = module.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[key], value) for key, value in before.items())


@every_family
def test_three_ways_to_run_a_configuration(name: str) -> None:
    """`set_stitch` and a plain call, an id in the call, and `forward_many` give the same logits, id by id."""
    network, x = build(name)
    ids = range(network.num_configurations)
    with torch.no_grad():
        many = dict(network.forward_many(x, reversed(ids)))
        assert sorted(many) == list(ids)
        for i in ids:
            plain = network.set_stitch(i)(x)
            torch.testing.assert_close(plain, network(x, i), rtol=0, atol=0)
            torch.testing.assert_close(plain, many[i], rtol=0, atol=0)
    distinct = [many[i] for i in ids]
    assert not any(torch.allclose(a, b, rtol=1e-4) for a, b in pairwise(distinct))


@every_family
def test_switching_moves_no_weight(name: str) -> None:
    network, _ = build(name)
    before, places = state(network), {key: value.data_ptr() for key, value in network.state_dict().items()}
    for i in range(network.num_configurations):
        assert network.set_stitch(i) is network and network.config_id == i
    assert unchanged(network, before)
    assert places == {key: value.data_ptr() for key, value in network.state_dict().items()}


@pytest.mark.parametrize("config_id", [-1, 9, 10**6])
def test_ids_out_of_range(config_id: int) -> None:
    network, x = build("plain ViT")
    chosen = network.config_id
    for use in (network.set_stitch, lambda i: network(x, i), lambda i: list(network.forward_many(x, [i]))):
        with pytest.raises(UserError, match=f"no configuration {config_id}; this network has 0 to 8"):
            use(config_id)
    assert network.config_id == chosen


@every_family
def test_new_classes_keep_blocks_and_stitches(name: str) -> None:
    network, x = build(name)
    before = state(network)
    network.reset_classifier(7)
    after = network.state_dict()
    changed = {key for key in before if key not in after or not torch.equal(before[key], after[key])}
    heads = {key for key in before if "head" in key.split(".")[2] or (".fc." in key and "mlp" not in key)}
    assert changed and changed <= heads
    with torch.no_grad():
        for i in range(network.num_configurations):
            assert network(x, i).shape == (3, 7)
    assert not any(key.startswith("stitch_layers") for key in changed)


@every_family
def test_checkpointing_gives_the_same_gradients(name: str) -> None:
    network, x = build(name)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.eval()  # recomputation would move its running statistics twice
    chosen = network.num_configurations - 1
    gradients = []
    for enable in (False, True):
        network.zero_grad()
        network.set_grad_checkpointing(enable)
        mean_logits(network(x, chosen)).square().sum().backward()
        gradients.append({key: p.grad.clone() for key, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 10
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=0, atol=0, msg=key)


def test_checkpointing_recomputes_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks run twice with it (forward, and again in the backward pass), once without."""
    network, x = build("plain ViT")
    calls = []
    monkeypatch.setattr(
        type(network.families[0]), "block", lambda self, anchor, stage, i, y: (calls.append(i), anchor.blocks[i](y))[1]
    )
    network.train()
    for enable, runs in ((False, 1), (True, 2)):
        calls.clear()
        network.set_grad_checkpointing(enable)
        network(x, 0).sum().backward()
        assert len(calls) == runs * 3


@every_family
def test_extracted_stitch_has_the_counted_parameters_and_the_same_logits(name: str) -> None:
    network, x = build(name)
    counted = parameters(network)
    for i in range(network.num_configurations):
        alone = SubNetwork(network, i).eval()
        assert sum(p.numel() for p in alone.parameters()) == counted[i]
        with torch.no_grad():
            torch.testing.assert_close(alone(x), mean_logits(network(x, i)), rtol=0, atol=0)


def test_extracted_stitch_is_a_copy() -> None:
    network, x = build("plain ViT")
    alone = SubNetwork(network, 4).eval()
    with torch.no_grad():
        expected = network(x, 4)
        randomise(network)
        assert not torch.allclose(network(x, 4), expected)
        torch.testing.assert_close(alone(x), expected, rtol=0, atol=0)


def test_extracted_stitch_saved_and_read(tmp_path: Path) -> None:
    network = SNNet(TWO_VITS, num_classes=K)
    randomise(network)
    alone, x = SubNetwork(network.eval(), 3).eval(), torch.randn(2, 3, 16, 16)
    alone.save(tmp_path / "stitch", {"anchors": TWO_VITS, "num_classes": K})
    read = SubNetwork.load(tmp_path / "stitch")
    with torch.no_grad():
        torch.testing.assert_close(read(x), alone(x), rtol=0, atol=0)
    (tmp_path / "stitch" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="does not hold an extracted stitch"):
        SubNetwork.load(tmp_path / "stitch")


@pytest.mark.parametrize("stitched_final_norm", [True, False])
def test_save_pretrained_and_from_pretrained(stitched_final_norm: bool, tmp_path: Path) -> None:
    """Everything that builds the network is in config.json, every weight in model.safetensors."""
    network = SNNet(TWO_VITS, num_classes=K, window=1, stitched_final_norm=stitched_final_norm)
    randomise(network)
    network.eval().save_pretrained(tmp_path)
    x = torch.randn(2, 3, 16, 16)
    for read in (SNNet.from_pretrained(str(tmp_path)), load_folder(tmp_path)[0]):
        assert isinstance(read, SNNet)
        assert unchanged(read, state(network))
        assert read.configurations == network.configurations and read.num_configurations == 4
        with torch.no_grad():
            for i in range(4):
                torch.testing.assert_close(read.eval()(x, i), network(x, i), rtol=0, atol=0)


def test_damaged_or_foreign_folder(tmp_path: Path) -> None:
    SNNet(TWO_VITS, num_classes=K).save_pretrained(tmp_path)
    SNNet(TWO_VITS, num_classes=K + 1)._save_pretrained(tmp_path)  # weights of another network
    with pytest.raises(UserError, match=r"anchors\.0\.head\.weight"):
        load_folder(tmp_path)
    with pytest.raises(UserError, match=r"anchors\.0\.head\.weight"):
        SNNet.from_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text('{"anchors": ["vit_tiny_patch16_224"], "surprise": 1}')
    with pytest.raises(UserError, match="does not describe a SNNet"):
        load_folder(tmp_path)


def test_modules_of_ones_own() -> None:
    """Models that carry their weights: the same objects, not copies; with other classes, heads alone are new."""
    anchors = [vit(8), vit(12)]
    before = [state(anchor) for anchor in anchors]
    network = stitch(anchors)
    assert all(a is b for a, b in zip(network.anchors, anchors, strict=True))
    assert all(unchanged(a, b) for a, b in zip(anchors, before, strict=True))
    again = stitch([copy.deepcopy(a) for a in anchors], num_classes=9)
    assert again.set_stitch(5)(torch.randn(2, 3, 16, 16)).shape == (2, 9)
    assert torch.equal(again.anchors[1].blocks[2].mlp.fc1.weight, before[1]["blocks.2.mlp.fc1.weight"])
    with pytest.raises(UserError, match="as timm names or as models, not mixed"):
        stitch(["vit_tiny_patch16_224", vit(8)])


@pytest.mark.parametrize(
    ("widths", "nearest", "configurations", "stitches"),
    [
        ((8,), True, 1, 0),
        ((8, 12), True, 2 + 7, 2),
        ((8, 12), False, 2 + 7, 2),
        ((8, 12, 16, 24), True, 4 + 3 * 7, 3 * 2),
        # Six pairs of anchors; four chains of three, with 33 choices of two cuts each where p2 >= q1.
        ((8, 12, 16, 24), False, 4 + 6 * 7 + 4 * 33, 6 * 2),
    ],
)
def test_any_number_of_anchors(widths: tuple[int, ...], nearest: bool, configurations: int, stitches: int) -> None:
    network = StitchedNetwork([vit(width) for width in widths], nearest=nearest).eval()
    assert network.num_configurations == configurations
    layers = {key.split(".transform")[0] for key in network.state_dict() if key.startswith("stitch_layers")}
    assert len(layers) == stitches
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for i, logits in network.forward_many(x, range(network.num_configurations)):
            torch.testing.assert_close(logits, network(x, i), rtol=0, atol=0)
            c = network.configurations[i]
            assert list(c.anchors) == sorted(c.anchors)
            assert not nearest or all(b == a + 1 for a, b in pairwise(c.anchors))


def test_a_chain_of_three_runs_by_hand() -> None:
    """Blocks 0..p1 of the first, layer, q1..p2 of the second, layer, q2.. of the third, its norm and head."""
    network = StitchedNetwork([vit(8), vit(12), vit(16)], nearest=False).eval()
    randomise(network)
    i = next(i for i, c in enumerate(network.configurations) if c.cuts == ((0, 1), (2, 1)))
    c, x = network.configurations[i], torch.randn(2, 3, 16, 16)
    assert c.layers == (0, 1)
    first, second, third = network.anchors
    with torch.no_grad():
        y = first.blocks[0](first._pos_embed(first.patch_embed(x)))
        y = network.stitch_layers[0][0].transform(y)
        y = second.blocks[2](second.blocks[1](y))
        y = network.stitch_layers[2][1].transform(y)  # pairs in order: 0-1, 0-2, 1-2
        y = third.norm(third.blocks[2](third.blocks[1](y)))
        torch.testing.assert_close(network(x, i), third.head(y[:, 0]), rtol=1e-5, atol=1e-6)
