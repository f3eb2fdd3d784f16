"""A sub-network of its own against the supernet at the same architecture, for every option of the supernet."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from focusformer.method.architecture import Architecture, SuperSizes
from focusformer.method.supernet import Supernet
from focusformer.models.extraction import extract_subnet, subnet_config
from focusformer.models.static_vit import StaticViT
from paperkit.errors import UserError

SIZES: dict[str, Any] = dict(
    embed=48, depth=3, heads=4, ratio=4.0, head_dim=12, img_size=20, patch_size=4, num_classes=7,
    max_relative_position=3,
)  # fmt: skip
NARROW = Architecture(40, (3, 1), (1.5, 2.3))


def supernet_of(**options: Any) -> Supernet:
    """A supernet whose every number, biases and tables too, is drawn at random."""
    supernet = Supernet(SuperSizes(**{**SIZES, **options})).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in supernet.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return supernet


def images(count: int = 2, size: int = 20) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "interleaved": dict(qkv_bias_layout="interleaved"),
    "no bias": dict(qkv_bias=False),
    "class token": dict(gp=False),
    "no relative position": dict(relative_position=False),
    "no absolute position": dict(abs_pos=False),
    "scale": dict(scale=True),
    "post norm": dict(pre_norm=False),
    "plain qkv": dict(change_qkv=False, relative_position=False),
    "plain qkv, scaled, interleaved": dict(change_qkv=False, relative_position=False, scale=True),
    "plain qkv with tables": dict(change_qkv=False),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_equal_logits(options: dict[str, Any]) -> None:
    supernet = supernet_of(**options)
    heads = (4, 3, 2) if options.get("change_qkv", True) else (4, 2, 1)
    if options == OPTIONS["plain qkv with tables"]:  # which fit the widths of all heads alone
        heads = (4, 4, 4)
    for architecture in (
        supernet.sizes.largest,
        Architecture(40, heads[:2], (1.5, 2.3)),  # no choice of any space
        Architecture(16, heads[2:], (0.5,)),
    ):
        model = extract_subnet(supernet, architecture)
        expected = supernet(images(), architecture)
        torch.testing.assert_close(model(images()), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
        assert all(value.is_contiguous() for value in model.state_dict().values())


def test_only_its_own_parameters() -> None:
    """The count by the formula, with the sizes of this supernet: patches 25, patch of 48 numbers, tables of 8."""
    e, expected = NARROW.embed, 0
    for heads, hidden in zip(NARROW.heads, NARROW.hidden, strict=True):
        q = 12 * heads
        expected += 4 * q * e + 3 * q + e + 4 * e + 2 * e * hidden + hidden + e + 4 * 8 * 12
    expected += 48 * e + e + e * 27 + 2 * e + 7 * e + 7
    model = extract_subnet(supernet_of(), NARROW)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_weights_are_copies() -> None:
    supernet = supernet_of()
    model = extract_subnet(supernet, supernet.sizes.largest)
    before = supernet(images(), supernet.sizes.largest)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(supernet(images(), supernet.sizes.largest), before) and not model.training


def test_gradients_are_those_of_the_slices() -> None:
    supernet = supernet_of()
    model = extract_subnet(supernet, NARROW)
    supernet(images(), NARROW).square().sum().backward()
    model(images()).square().sum().backward()
    q = 12 * NARROW.heads[0]
    found, expected = model.blocks[0].attn.qkv.weight.grad, supernet.blocks[0].attn.qkv.weight.grad
    assert found is not None and expected is not None
    torch.testing.assert_close(found[:q], expected[0 : 3 * q : 3, : NARROW.embed], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[2 * q :], expected[2 : 3 * q : 3, : NARROW.embed], rtol=1e-4, atol=1e-4)


def test_above_the_super_sizes_is_refused() -> None:
    for text, said in (("64/4/4", "embedding width 64 is above"), ("48/5/4", "heads 5 is above"),
                       ("48/4/4.5", "MLP ratio 4.5 is above"), ("48/4,4,4,4/1,1,1,1", "depth 4 is above")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            extract_subnet(supernet_of(), Architecture.parse(text))


def test_saved_folder(tmp_path: Path) -> None:
    model = extract_subnet(supernet_of(change_qkv=False, relative_position=False), Architecture(40, (4, 2), (1.5, 2.3)))
    model.save_pretrained(tmp_path)
    again = StaticViT.from_pretrained(tmp_path)
    assert torch.equal(again(images()), model(images()))
    assert str(again.architecture) == "40/4,2/1.5,2.3"
    tuned = StaticViT.from_pretrained(tmp_path, drop_path_rate=0.2)
    assert [round(getattr(block.drop_path, "drop_prob", 0.0), 3) for block in tuned.blocks] == [0.0, 0.2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(architecture="40/3"), "is no architecture"),
        (dict(img_size=22), "img_size 22 is no multiple of patch_size 4"),
        (dict(num_classes=-1), "num_classes -1: a whole number, 0 at least"),
        (dict(head_dim=[12]), "one for each of 2 layers"),
        (dict(global_pool="max"), "global_pool 'max' is none of"),
        (dict(architecture="40/1/0.01"), "leaves no hidden unit"),
    ],
)
def test_what_describes_no_network(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        StaticViT(**{**subnet_config(supernet_of().sizes, NARROW), **change})


def test_another_image_size_is_refused() -> None:
    with pytest.raises(UserError, match="images are 3 x 24 x 24; this model takes 3 x 20 x 20"):
        extract_subnet(supernet_of(), NARROW)(images(size=24))
