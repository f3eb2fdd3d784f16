"""Architectures and spaces: their forms, sizes and refusals."""

import dataclasses
import random
from pathlib import Path

import pytest
import yaml

from focusformer.method.architecture import AUTOFORMER, SPACES, Architecture, SearchSpace, SuperSizes
from paperkit.errors import UserError

DIGITS = SPACES["digits"]


@pytest.mark.parametrize("name", ["ti", "s", "b"])
def test_forms_go_and_come_back(name: str) -> None:
    a = AUTOFORMER[name]
    assert Architecture.parse(str(a)) == a
    assert Architecture.from_official(a.to_official()) == a
    assert Architecture.from_flat(a.to_flat()) == a
    assert len(a.to_flat()) == 2 * a.depth + 2
    SPACES[name].sizes.check(a)


def test_named_ratio_outside_the_space_is_taken() -> None:
    """AutoFormer-T has ratio 3, which the released Ti space does not list."""
    space = SPACES["ti"]
    assert not space.holds(AUTOFORMER["ti"])
    space.sizes.check(AUTOFORMER["ti"])


def test_hidden_widths_are_truncated() -> None:
    assert Architecture(7, (1, 1), (1.5, 0.5)).hidden == (10, 3)


@pytest.mark.parametrize(
    ("name", "size"),
    [("ti", 1_056_964_608), ("s", 77_103_263_459_313), ("b", 10_108_977_168_384), ("digits", 4 * (12 + 12**2 + 12**3))],
)
def test_sizes_of_spaces(name: str, size: int) -> None:
    """The table of smallest and largest architectures."""
    assert SPACES[name].size() == size


def test_iterating_gives_each_architecture_once() -> None:
    everything = list(DIGITS)
    assert len(everything) == len(set(everything)) == DIGITS.size()
    assert all(DIGITS.holds(a) for a in everything)


def test_probes_are_in_the_space() -> None:
    for space in SPACES.values():
        assert space.holds(space.smallest()) and space.holds(space.middle()) and space.holds(space.largest())
        assert space.smallest().embed < space.largest().embed
    assert str(DIGITS.middle()) == "24/2,2/1,1"


def test_uniform_draws_reach_every_choice() -> None:
    rng = random.Random(0)
    drawn = [DIGITS.sample_uniform(rng) for _ in range(300)]
    assert {a.embed for a in drawn} == set(DIGITS.embed) and {a.depth for a in drawn} == set(DIGITS.depth)
    assert {h for a in drawn for h in a.heads} == set(DIGITS.heads)
    assert {r for a in drawn for r in a.ratios} == set(DIGITS.ratios)


@pytest.mark.parametrize("name", list(SPACES))
def test_yaml_goes_and_comes_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(SPACES[name].to_plain()))
    assert SearchSpace.from_yaml(str(path)) == SPACES[name]


def test_official_file_is_read(tmp_path: Path) -> None:
    """Unsorted choices are sorted: the official order of draws depends on it."""
    path = tmp_path / "supernet-T.yaml"
    path.write_text(
        "SUPERNET: {MLP_RATIO: 4.0, NUM_HEADS: 4, EMBED_DIM: 256, DEPTH: 14}\n"
        "SEARCH_SPACE: {MLP_RATIO: [4, 3.5], NUM_HEADS: [3, 4], DEPTH: [14, 12, 13], EMBED_DIM: [240, 192, 216]}\n"
    )
    assert SearchSpace.from_yaml(str(path)) == SPACES["ti"]


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("SEARCH_SPACE", "EMBED_DIM", [192, 512], "embedding width 512 is above the supernet's 256"),
        ("SEARCH_SPACE", "DEPTH", [12, 15], "depth 15 is above the supernet's 14"),
        ("SEARCH_SPACE", "NUM_HEADS", [3, 5], "heads 5 is above the supernet's 4"),
        ("SEARCH_SPACE", "MLP_RATIO", [3.5, 4.5], "MLP ratio 4.5 is above the supernet's 4"),
        ("SEARCH_SPACE", "MLP_RATIO", [0.001, 4], "leaves no hidden unit"),
        ("SEARCH_SPACE", "EMBED_DIM", [], "positive whole numbers; got []"),
        ("SEARCH_SPACE", "EMBED_DIM", [192, 192], "hold a value twice"),
        ("SEARCH_SPACE", "EMBED_DIM", [192, -8], "positive whole numbers"),
        ("SEARCH_SPACE", "EMBED_DIM", ["192"], "positive whole numbers"),
        ("SEARCH_SPACE", "EMBED_DIM", 192, "a list; got 192"),
        ("SEARCH_SPACE", "MLP_RATIO", [float("nan")], "positive numbers"),
        ("SEARCH_SPACE", "WIDTH", [192], "unknown key 'WIDTH'"),
        ("SUPERNET", "NUM_HEADS", 5, "5 heads of 64 do not fit into the width 256"),
        ("SUPERNET", "DEPTH", 10**9, "depth 1000000000 is above 1000 layers"),
        ("SEARCH_SPACE", "DEPTH", [12, 10**9], "depth 1000000000 is above the supernet's 14"),
        ("SUPERNET", "DEPTH", True, "positive whole number; got True"),
        ("SUPERNET", "img_size", 100, "100 is no multiple of patch_size 16"),
        ("SUPERNET", "gp", 1, "gp is true or false"),
        ("SUPERNET", "qkv_bias_layout", "other", "known: contiguous, interleaved"),
    ],
)
def test_impossible_space_is_one_line(section: str, key: str, value: object, message: str, tmp_path: Path) -> None:
    plain = SPACES["ti"].to_plain()
    plain[section][key] = value
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(plain))
    with pytest.raises(UserError) as error:
        SearchSpace.from_yaml(str(path))
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{}", "SUPERNET: [1]\nSEARCH_SPACE: {}", "SUPERNET: {EMBED_DIM: 8}"])
def test_space_file_without_its_sections_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"has no section|lacks"):
        SearchSpace.from_yaml(str(path))


@pytest.mark.parametrize(
    "text", ["", "192", "192/3,3/4", "192/3,x/4,4", "0/3/4", "192/3/-1", "192//", "192/3/nan", "1.5/3/4", "192/3/4/5"]
)
def test_text_that_is_no_architecture_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        Architecture.parse(text)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"layer_num": 2, "embed_dim": [8, 16], "num_heads": [1, 1], "mlp_ratio": [1.0, 1.0]},
        {"layer_num": 3, "embed_dim": [8, 8], "num_heads": [1, 1], "mlp_ratio": [1.0, 1.0]},
        {"layer_num": 0, "embed_dim": [], "num_heads": [], "mlp_ratio": []},
        {"layer_num": 1, "embed_dim": 8, "num_heads": 1, "mlp_ratio": 1.0},
    ],
)
def test_broken_official_config_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(UserError):
        Architecture.from_official(config)


def test_heads_that_do_not_fit_without_change_qkv() -> None:
    """q stays D there: heads must divide it, and tables of relative position fit the super heads alone."""
    sizes = SuperSizes(256, 2, 4, 4.0, change_qkv=False, relative_position=False)
    sizes.check(Architecture(200, (2, 1), (4.0, 2.0)))
    with pytest.raises(UserError, match="3 heads do not divide the width 256"):
        sizes.check(Architecture(200, (3,), (4.0,)))
    with pytest.raises(UserError, match="exceed relative tables of 64"):
        dataclasses.replace(sizes, relative_position=True).check(Architecture(200, (2,), (4.0,)))
