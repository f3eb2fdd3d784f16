"""Lists and pictures as people have them: read rightly, or the odd thing named."""

import json
from pathlib import Path

import pytest
import torch
from made import make_fgvc, make_vtab, small_lists, spt
from PIL import Image
from torchvision.transforms.functional import to_tensor

from paperkit.errors import UserError
from spt.deployment.task_model import read_image
from spt.training.image_lists import FGVC, ImageList, ListDataset, fgvc_split, read_list

NAMES = ["a.png", "b c.png", "d,e.png", "2 3.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("encoding", "between", "end"),
    [
        ("utf-8-sig", " ", "\n"),
        ("utf-8", "  ", "\n"),
        ("utf-8", "\t", "\n"),
        ("utf-8", ",", "\n"),
        ("utf-8", ", ", "\r\n"),
        ("utf-8", ";", "\n"),
        ("utf-16", " \t ", "\r\n"),
        ("utf-8-sig", " ", " \n\n"),
    ],
)
def test_lists_of_many_tools_are_one(encoding: str, between: str, end: str, folder: Path) -> None:
    file = folder / "list.txt"
    lines = [f"{name}{between}{label}" for label, name in enumerate(NAMES)]
    file.write_bytes((end.join(lines) + end).encode(encoding))
    found = read_list(file, folder, 4, "x")
    assert found.paths == [folder / name for name in NAMES] and found.labels == [0, 1, 2, 3]


def test_quoted_names_are_read(folder: Path) -> None:
    (folder / "list.csv").write_text('"d,e.png",3\n"b c.png", 1\n')
    found = read_list(folder / "list.csv", folder, 4, "x")
    assert [path.name for path in found.paths] == ["d,e.png", "b c.png"] and found.labels == [3, 1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"path,label\na.png,0\n", r"list\.txt, line 1: 'path,label' is not 'path label'"),
        (b"a.png 0\na.png\n", r"list\.txt, line 2: 'a\.png' is not 'path label'"),
        (b"a.png -1\n", "line 1: 'a.png -1' is not"),
        (b"a.png 1.0\n", "line 1: 'a.png 1.0' is not"),
        (b"a.png 4\n", "line 1 has label 4, x has 4 classes"),
        (b"a.png \xff\xf1 0\n", r"list\.txt is not text in utf-8"),
        (b"moon.png 0\n", "1 of 1 images of .* are missing"),
        ("a.png \u0663\n".encode(), "is not 'path label'"),
    ],
)
def test_what_is_odd_is_named(content: bytes, words: str, folder: Path) -> None:
    (folder / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_list(folder / "list.txt", folder, 4, "x")


def test_json_lists_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    make_fgvc(tmp_path, "stanforddog")
    file = tmp_path / "train.json"
    plain = fgvc_split(tmp_path, "stanforddog", "train")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert fgvc_split(tmp_path, "stanforddog", "train") == plain and len(plain) == FGVC["stanforddog"][0]
    file.write_text(json.dumps([1, 2]))
    with pytest.raises(UserError, match=r"train\.json is not a JSON object"):
        fgvc_split(tmp_path, "stanforddog", "train")


def test_pictures_are_read_as_a_viewer_shows_them(tmp_path: Path) -> None:
    """On its side by EXIF, and grey of 16 bits: in training and in `predict`."""
    left = Image.new("RGB", (8, 8), "black")
    left.paste("white", (0, 0, 4, 8))
    note = Image.Exif()
    note[0x0112] = 6  # turn by a quarter, clockwise: left becomes top
    left.save(tmp_path / "side.png", exif=note)
    grey = Image.new("I;16", (8, 8), 32768)
    grey.save(tmp_path / "grey.png")
    data = ListDataset(ImageList([tmp_path / "side.png", tmp_path / "grey.png"], [0, 1], 2), to_tensor)
    assert bool((data[0][0][:, :4] == 1).all()) and bool((data[0][0][:, 4:] == 0).all())
    torch.testing.assert_close(data[1][0], torch.full((3, 8, 8), 128 / 255))
    upright = read_image(tmp_path / "side.png", 8)[0]
    assert bool((upright[:, :3] > 1).all()) and bool((upright[:, 5:] < 0).all())


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("split", ["train800", "test"])
def test_a_broken_picture_is_one_line_with_its_name(workers: str, split: str, lists: Path, tmp_path: Path) -> None:
    """In the sensitivity pass and in the evaluation, read by this process or by the loader's."""
    make_vtab(tmp_path / "vtab", "svhn")
    broken = tmp_path / "vtab" / "svhn" / "images" / split / "000004.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    change = {"data.root": str(tmp_path / "vtab"), "data.workers": workers, "recipe.epochs": "1"}
    line = spt.child("train", *small_lists(lists, **change), cwd=tmp_path, code=1).line
    assert f"cannot read image {broken}" in line and len(line) < 400


def test_home_is_meant_after_an_equals_sign_and_in_a_config(lists: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "a.yaml").write_text("engine: lists\ndata:\n  root: ~/here\n  name: svhn\n")
    line = spt.refused("train", "--engine=lists", "--data.name=svhn", "--data.root=~/here", cwd=tmp_path)
    assert f"no VTAB-1k task at {tmp_path}/home/here/svhn" in line
    assert line == spt.refused("train", "--config", "a.yaml", cwd=tmp_path)
    weights = small_lists(lists, **{"backbone.file": "~/moon.npz"})
    assert f"{tmp_path}/home/moon.npz" in spt.refused("train", *weights, cwd=tmp_path)
