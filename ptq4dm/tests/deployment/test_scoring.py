"""Scores: the formulas, the network's features, conditions that are told and compared."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made import ptq4dm
from PIL import Image

from paperkit.errors import UserError
from paperkit.files.weights import read_safetensors
from ptq4dm.deployment.scoring import (
    Images,
    Moments,
    extract,
    frechet,
    inception,
    inception_score,
    pixels,
    precision_recall,
    read_statistics,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.safetensors"


def test_formulas_are_those_of_the_evaluator() -> None:
    tensors, metadata = read_safetensors(GOLDEN)
    found = frechet(Moments.of(tensors["in.a"]), Moments.of(tensors["in.b"]))
    assert found == pytest.approx(tensors["out.frechet"].item(), rel=1e-4)
    split = json.loads(metadata["config"])["is_split_size"]
    score = inception_score(tensors["in.probs"].double().log(), split)
    assert score == pytest.approx(tensors["out.inception_score"].item(), rel=1e-4)


def test_precision_and_recall_of_known_sets() -> None:
    """Two clusters that the generator knows one of: all it makes is real, half of what is real it makes."""
    torch.manual_seed(0)
    left, right = torch.randn(40, 4), torch.randn(40, 4) + 50
    assert precision_recall(left + 0.01, torch.cat([left, right])) == (1.0, 0.5)


def save_images(folder: Path, count: int, seed: int, side: int = 4) -> Path:
    folder.mkdir()
    drawn = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    for number, image in enumerate(drawn):
        Image.fromarray(image).save(folder / f"{number}.png")
    np.savez(folder.with_suffix(".npz"), arr_0=drawn)
    return folder


def test_a_folder_and_an_npz_file_hold_the_same(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "a", 5, 0)
    one = torch.cat([*Images.at(folder).batches(2)])
    other = torch.cat([*Images.at(tmp_path / "a.npz").batches(3)])
    assert one.shape == (5, 3, 4, 4) and torch.equal(one, other)


def test_a_folder_of_samples_tells_its_rounding(tmp_path: Path) -> None:
    """And one that is not whole is not scored."""
    np.savez(tmp_path / "samples.npz", arr_0=np.zeros((4, 2, 2, 3), dtype=np.uint8))
    with pytest.raises(UserError, match="is not whole"):
        Images.at(tmp_path)
    (tmp_path / "samples.json").write_text(json.dumps({"sampling": {"rounding": "truncate"}}))
    found = Images.at(tmp_path)
    assert (found.rounding, found.count) == ("truncate", 4)


def test_batches_do_not_change_features(tmp_path: Path) -> None:
    images = Images.at(save_images(tmp_path / "a", 5, 0))
    found = [extract(images, pixels, size, lambda done: None).pool for size in (2, 5)]
    assert torch.equal(*found) and found[0].shape == (5, 48)


def test_features_of_inception(tmp_path: Path) -> None:
    """2048 numbers, 7 channels of the 17 x 17 map, logits without a bias; here with weights that are made up."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    blank = tmp_path / "made.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.save({}, blank)
        network = FeatureExtractorInceptionV3("made", ["2048"], str(blank))
    torch.save(network.state_dict(), blank)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    extractor = inception(blank, torch.device("cpu"))
    found = extractor(images)
    assert found.spatial is not None and found.logits is not None
    assert (found.pool.shape, found.spatial.shape, found.logits.shape) == ((2, 2048), (2, 2023), (2, 1008))
    assert torch.equal(extractor(images).spatial, found.spatial)
    torch.testing.assert_close(found.logits, found.pool @ network.fc.weight.T)


def score(*words: str, cwd: Path) -> str:
    return ptq4dm.here("score", *words, "--extractor", "pixels", "--device", "cpu", cwd=cwd).out


def test_the_verb_tells_its_conditions_and_compares_only_equal_ones(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        save_images(tmp_path / name, 60 if name == "c" else 64, seed)
    printed = score("a", "--reference", "b", "--output", "one", "--keep-statistics", "b_statistics.npz", cwd=tmp_path)
    assert "pixels Frechet distance" in printed and "FID" not in printed
    assert "images 64" in printed and "rounding unknown" in printed
    one = json.loads((tmp_path / "one" / "scores.json").read_text())
    again = score("a", "--reference", "b", "--compare", "one/scores.json", "--output", "two", cwd=tmp_path)
    assert "one/scores.json" in again
    score("a", "--reference", "b_statistics.npz", "--output", "three", cwd=tmp_path)
    three = json.loads((tmp_path / "three" / "scores.json").read_text())
    key = "pixels Frechet distance"
    assert three["scores"][key] == pytest.approx(one["scores"][key]) and "pixels recall" in one["scores"]
    words = ("score", "c", "--reference", "b", "--extractor", "pixels", "--compare", "one/scores.json")
    assert "not to be compared: images is 60 here and 64" in ptq4dm.refused(*words, cwd=tmp_path)
    words = ("score", "a", "--reference", "c", "--extractor", "pixels", "--compare", "one/scores.json")
    assert "not to be compared: reference is c (" in ptq4dm.refused(*words, cwd=tmp_path)
    words = ("score", "a", "--reference", "b_statistics.npz", "--extractor", "ptq4dm.deployment.scoring:none")
    assert "no extractor" in ptq4dm.refused(*words, cwd=tmp_path)


def test_sets_that_cannot_be_read(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "a", 3, 0)
    Image.new("RGB", (9, 9)).save(folder / "z.png")
    with pytest.raises(UserError, match="all must be of one size"):
        [*Images.at(folder).batches(8)]
    (tmp_path / "empty").mkdir()
    made: dict[str, Any] = {"empty": "holds no pictures", "none": "no images at", "bad.npz": "arr_0 is float64"}
    np.savez(tmp_path / "bad.npz", arr_0=np.zeros((2, 3)))
    for name, message in made.items():
        with pytest.raises(UserError, match=message):
            Images.at(tmp_path / name)
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.npz"):
        Images.at(tmp_path / "cut.npz")


def test_images_that_lie(tmp_path: Path) -> None:
    """Sizes that overflow, and bytes that changed behind the header."""
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((40, 8, 8, 3), dtype=np.uint8))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "changed.npz").write_bytes(whole[:4000] + b"\x01" + whole[4001:])
    with pytest.raises(UserError, match="is damaged behind image 0"):
        [*Images.at(tmp_path / "changed.npz").batches(40)]
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive, archive.open("arr_0.npy", "w") as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (2, 2**31, 2**31, 3)}
        np.lib.format.write_array_header_1_0(member, header)  # type: ignore[arg-type]
        member.write(bytes(100))
    with pytest.raises(UserError, match="cut off after image 0"):
        [*Images.at(tmp_path / "huge.npz").batches(2)]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "holds no statistics"),
        ({"mu": np.array("none"), "sigma": np.eye(3)}, "holds no statistics"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "a mean of"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "NaN"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "count": np.zeros(2)}, "holds no statistics"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "extractor": np.array("pixels")}, "of the extractor pixels"),
    ],
    ids=["no covariance", "text", "other sizes", "NaN", "two counts", "another extractor"],
)
def test_statistics_that_lie(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_statistics(tmp_path / "a.npz", "inception")
