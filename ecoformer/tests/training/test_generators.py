"""ListOps and Pathfinder: the parser, the values, pictures that look as they should."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from ecoformer.training.listops import SHORT, ListOpsOptions, encode, examples, parse, source_of, value_of
from ecoformer.training.pathfinder import pathfinder_images, setting
from paperkit.errors import UserError


def test_texts_read_back() -> None:
    for example in itertools.islice(examples(1, SHORT), 50):
        assert value_of(parse(example.tokens)) == value_of(parse(example.source)) == example.target
        assert source_of(parse(example.tokens)) == example.source and len(encode(example.tokens)) == example.length


@pytest.mark.parametrize(
    ("text", "value"), [("[MED 1 2 4 9 X", 3), ("[MED 1 2 X", 1), ("[SM 9 9 [MIN 4 7 X X", 2), ("7", 7)]
)
def test_values(text: str, value: int) -> None:
    assert value_of(parse(text)) == value


@pytest.mark.parametrize("text", ["[MIN 1", "[MIN X", "1 2", "", "[AVG 1 X", "12"])
def test_broken_texts(text: str) -> None:
    with pytest.raises(UserError):
        parse(text)


def test_pathfinder() -> None:
    images, labels = pathfinder_images(24, 0, setting("relaxed"))
    assert images.dtype == np.uint8 and images.shape == (24, 24, 24) and 4 < labels.sum() < 20
    assert (images.min((1, 2)) == 0).all() and (images.max((1, 2)) == 255).all()
    again, _ = pathfinder_images(3, 0, setting("relaxed"))
    assert np.array_equal(again, images[:3])


def test_pathfinder_statistics_are_the_references() -> None:
    images, _ = pathfinder_images(12, 3, setting("hard"))
    assert 15 < images.mean() < 27 and 0.10 < (images > 40).mean() < 0.19


def test_impossible_settings() -> None:
    with pytest.raises(UserError, match="difficulty 'very hard' is none of easy"):
        setting("very hard")
    with pytest.raises(UserError, match="no room inside a frame"):
        replace(setting("hard"), window=20)
    with pytest.raises(UserError, match="no ListOps tree has depth 0"):
        ListOpsOptions(0)
