"""Configs are plain data within bounds, and what is wrong with one is said in a line that names it."""

import time
from pathlib import Path

import pytest

from paperkit.errors import UserError
from paperkit.files.settings import read_settings


def test_plain_options(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# a comment\nbase: &base {lr: 1.0e-3, steps: [1, 2]}\nmore: *base\nname: é\n", encoding="utf-8")
    base = {"lr": 1e-3, "steps": [1, 2]}
    assert read_settings(path) == {"base": base, "more": base, "name": "é"}
    path.write_bytes(b"\xef\xbb\xbfname: a\n")  # an editor's byte order mark
    assert read_settings(path) == {"name": "a"}
    path.write_text("# nothing\n")
    assert read_settings(path) == {}


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS, "holds more than 100,000 values, its aliases written out"),
        ("a: &a [*a]\n", "has an alias that holds itself"),
        ("[" * 400 + "]" * 400, "nested"),
        ("[" * 100_000, "nested too deeply"),
        ("a: 1\n" * 400_000, "is larger than 1 MiB"),
        ("a: {b\n", "it is not YAML"),
        ("a: !!python/object/apply:os.system [touch built]\n", "it is not YAML"),
        ("- a\n", "is not a mapping of options"),
        ("1: a\n", "is not a mapping of options"),
        ("a: 2026-13-45\n", "it is not YAML"),
    ],
)
def test_refused_at_once(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(UserError, match=says) as error:
        read_settings(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert time.process_time() - start < 20 and not (tmp_path / "built").exists()


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the config .*nowhere\.yaml: No such file"):
        read_settings(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="Is a directory"):
        read_settings(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not YAML"):
        read_settings(tmp_path / "bytes")
