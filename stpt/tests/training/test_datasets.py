"""Clips as models get them: which there are, their pictures and truth, augmentation by (seed, place), and bad input."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made import CLASSES, make_activitynet, make_bad_videos, make_kinetics, make_own, make_thumos
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope, init_default_scope
from torch import Tensor
from torch.utils.data import DataLoader

from paperkit.errors import UserError
from paperkit.training.openmmlab import PlacedSampler
from stpt.training.clips import VideoClips
from stpt.training.datasets import TADDataset
from stpt.training.preparing import prepare
from stpt.training.transforms import ConsistencySplice
from stpt.training.videos import VideoFile, video_files

AUGMENTED = [
    dict(type="ReadClip"), dict(type="CropClip", size=24, random=True), dict(type="FlipClip"),
    dict(type="ConsistencySplice"), dict(type="BoundaryMasks"), dict(type="PackActions"),
]  # fmt: skip
PLAIN = [dict(type="ReadClip"), dict(type="CropClip", size=24), dict(type="BoundaryMasks"), dict(type="PackActions")]
SIZE = (32, 32)
RECOGNITION = [
    dict(type="DecodeClip"), dict(type="CropClip", size=24, random=True), dict(type="FlipClip"),
    dict(type="RandAugmentClip"), dict(type="PackClip"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def scope() -> Iterator[None]:
    """What the Runner sets by `default_scope`."""
    before = DefaultScope.get_current_instance()
    init_default_scope("stpt")
    yield
    if before is not None:
        init_default_scope(before.scope_name)


@pytest.fixture(scope="module")
def thumos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_thumos(tmp_path_factory.mktemp("thumos"), videos=2, seconds=20.0)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_own(tmp_path_factory.mktemp("own"), videos=2, seconds=8.0)
    options = {"fps": 10.0, "frames": None, "size": SIZE, "rate": None, "reader": "pyav"}
    prepare(video_files(root / "videos"), root / "frames", options, processes=1)
    return root


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_kinetics(tmp_path_factory.mktemp("kinetics"))


def afsd(root: Path, split: str = "val", **options: Any) -> TADDataset:
    folder = {"val": "validation_npy", "test": "test_npy"}[split]
    common = dict(frames=folder, table=f"{split}_video_info.csv", clip_length=128, size=SIZE, pipeline=PLAIN)
    return TADDataset(f"{split}_Annotation_ours.csv", **{**common, "data_root": str(root), **options})


def own_data(root: Path, **options: Any) -> TADDataset:
    common = dict(frames="frames", subset="training", clip_length=64, size=SIZE, pipeline=PLAIN)
    return TADDataset("annotations.json", **{**common, "data_root": str(root), **options})


def test_windows_of_afsds_folder(thumos: Path) -> None:
    """200 frames, windows of 128 every 30: at 0, 30, 60 and 72; pictures and truth are those of the files."""
    data = afsd(thumos)
    assert len(data.metainfo["classes"]) == 20
    truth = json.loads((thumos / "thumos_gt.json").read_text())["database"]
    seen = []
    for i in range(len(data)):
        sample = data[i]
        meta, inputs = sample["data_samples"], sample["inputs"]
        seen.append((meta.video, meta.offset))
        assert inputs.shape == (3, 128, 24, 24) and inputs.dtype == torch.uint8 and inputs.is_contiguous()
        assert (meta.sample_fps, meta.duration, meta.frame_num, meta.pad_mode) == (10, 20.0, 128, "black")
        array = np.load(thumos / "validation_npy" / f"{meta.video}.npy")[meta.offset : meta.offset + 128, 4:28, 4:28]
        assert np.array_equal(inputs.numpy(), array.transpose(3, 0, 1, 2))
        expected, whole = [], False
        for action in truth[meta.video]["annotations"]:
            start, end = (10 * float(second) - meta.offset for second in action["segment"])
            inside = min(end, 128) - max(start, 1)
            whole |= start >= 1 and end <= 128
            if inside >= (end - start) / 2:
                expected.append([max(start, 1), min(end, 128), CLASSES.index(action["label"]) + 1])
        assert whole
        found = torch.cat([meta.gt_segments, meta.gt_labels[:, None].float()], 1)
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)
        assert (
            meta.start_mask.shape == (128,) and 0 < meta.start_mask.sum() < 30 and meta.start_mask.dtype == torch.float
        )
    assert {offset for _, offset in seen} <= {0, 30, 60, 72} and len(seen) == len(set(seen)) >= 4


def test_a_test_sees_every_frame(thumos: Path) -> None:
    data = afsd(thumos, "test", stride=64, test_mode=True)
    places = [(data[i]["data_samples"].video, data[i]["data_samples"].offset) for i in range(len(data))]
    videos = [f"video_test_{i:07d}" for i in (1, 2)]
    assert places == [(video, offset) for video in videos for offset in (0, 64, 72)]


@pytest.mark.parametrize(
    ("pad_mode", "test_mode", "expected"),
    [("afsd", False, "black"), ("afsd", True, "grey"), ("grey", False, "grey"), ("black", True, "black")],
)
def test_short_videos_are_filled_up(thumos: Path, pad_mode: str, test_mode: bool, expected: str) -> None:
    data = afsd(thumos, clip_length=256, pad_mode=pad_mode, test_mode=test_mode)
    assert len(data) == 2
    sample = data[0]
    meta = sample["data_samples"]
    assert (meta.frame_num, meta.pad_mode) == (200, expected)
    assert sample["inputs"][:, :200].any() and not sample["inputs"][:, 200:].any()


def test_whole_videos(tmp_path: Path) -> None:
    """ActivityNet: 210 frames at 15 a second become 128 at 9.14; the clip has both actions, and one class alone."""
    root = make_activitynet(tmp_path, videos=1)
    options: dict[str, Any] = dict(clips="whole", clip_length=128, fps=None, max_frames=128, class_agnostic=True)
    options |= dict(data_root=str(root), size=SIZE, consistency="activitynet", pipeline=PLAIN)
    data = TADDataset("annotations.json", "videos", "training", **options)
    assert len(data) == 1 and data.metainfo["classes"] == ("action",)
    meta = data[0]["data_samples"]
    truth = json.loads((root / "annotations.json").read_text())["database"]["training_0"]["annotations"]
    rate = 128 / 14
    assert meta.video == "training_0" and meta.sample_fps == pytest.approx(rate) and meta.frame_num == 128
    torch.testing.assert_close(meta.gt_segments, rate * torch.tensor([a["segment"] for a in truth]))
    assert meta.gt_labels.tolist() == [1, 1]
    assert data.get_data_info(0)["th"] == int(rate * min(a["segment"][1] - a["segment"][0] for a in truth)) // 4 > 1
    assert data.get_data_info(0)["at_least"]  # an action of twice that block may be cut, on THUMOS14 only a longer one
    with pytest.raises(UserError, match="has 210 frames and a whole clip at most 128: prepare it with --frames 128"):
        TADDataset("annotations.json", "videos", "training", **{**options, "max_frames": None})


def test_files_and_arrays_give_the_same_samples(own: Path) -> None:
    arrays, files = own_data(own, stride=16), own_data(own, stride=16, frames="videos")
    assert len(arrays) == len(files) > 0 and arrays.metainfo["classes"] == ("jump", "wave")
    for i in (0, len(arrays) - 1):
        assert torch.equal(arrays[i]["inputs"], files[i]["inputs"])
    assert set(own_data(own, subset=["training", "validation"]).metainfo["classes"]) == {"jump", "wave"}


@pytest.mark.parametrize("form", ["thumos", "actionformer"])
def test_other_forms_of_annotations(form: str, own: Path, tmp_path: Path) -> None:
    root = make_own(tmp_path, videos=2, seconds=8.0, form=form)
    here = own_data(root, frames=str(own / "frames"), classes=("jump", "wave"))
    there = own_data(own)
    assert len(here) == len(there)
    for i in range(len(here)):
        a, b = here[i]["data_samples"], there[i]["data_samples"]
        assert torch.equal(a.gt_segments, b.gt_segments) and torch.equal(a.gt_labels, b.gt_labels)


@pytest.mark.parametrize("at_least", [False, True])
def test_an_action_of_two_blocks_is_cut_where_the_rule_allows_it(at_least: bool) -> None:
    sample = dict(actions=np.array([[20.0, 28.0, 1.0]]), frame_num=60, th=4, at_least=at_least)
    assert ("splice" in ConsistencySplice()(sample)) == at_least


def test_splice_is_of_the_same_pictures(own: Path) -> None:
    """Every frame of the spliced clip is one of the clip's; where the maps agree nothing has moved."""
    data = own_data(own, consistency="thumos", clip_length=80, pipeline=AUGMENTED, seed=3)
    assert not data.get_data_info(0)["at_least"]
    found = 0
    for i in range(20):
        sample = data[i % len(data)]
        meta, clip = sample["data_samples"], sample["inputs"]
        if "splice_inputs" in meta:
            found += 1
            flat, spliced = clip.flatten(2)[0].int(), meta.splice_inputs.flatten(2)[0].int()
            source = torch.cdist(spliced.float(), flat.float(), p=1).argmin(1)
            assert sorted(source.tolist()) == list(range(80)) and source.tolist() != list(range(80))
            (_, cut), (second, _), (a, b) = meta.splice_segments.tolist()
            assert second - cut == b - a + 2
    assert found


def flat(sample: dict[str, Any]) -> list[Tensor]:
    meta = sample["data_samples"]
    return [sample["inputs"], *(value for _, value in sorted(meta.items()) if isinstance(value, Tensor))]


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_is_a_function_of_seed_and_place(own: Path, workers: int) -> None:
    data = own_data(own, consistency="thumos", pipeline=AUGMENTED, seed=5)

    def drawn(number: int, count: int = workers) -> list[list[Tensor]]:
        loader = DataLoader(data, 1, sampler=PlacedSampler(data, seed=1), num_workers=count, collate_fn=lambda x: x[0])
        return [flat(sample) for sample, _ in zip(loader, range(number), strict=False)]

    first = drawn(6)
    np.random.seed(0)  # what ran before does not matter
    assert all(same(a, b) for a, b in zip(first, drawn(6, 0), strict=True))
    other = own_data(own, consistency="thumos", pipeline=AUGMENTED, seed=6)
    loader = DataLoader(other, 1, sampler=PlacedSampler(other, seed=1), collate_fn=lambda x: x[0])
    assert not all(same(a, flat(b)) for a, b in zip(first, loader, strict=False))


def test_crop_and_turn_are_of_the_whole_clip(thumos: Path) -> None:
    """Each sample is one of the places and turns of the plain clip, the same in all frames; several of them appear."""
    sample = dict(afsd(thumos, pipeline=[dict(type="ReadClip")])[0])
    full = sample["clip"]
    data = afsd(thumos, pipeline=AUGMENTED)
    places = set()
    for seed in range(12):
        np.random.seed(seed)
        inputs = data[0]["inputs"].numpy().transpose(1, 2, 3, 0)
        turned = {False: inputs, True: inputs[:, :, ::-1]}
        found = [
            (top, left, turn) for top in range(9) for left in range(9) for turn in turned
            if np.array_equal(full[:2, top : top + 24, left : left + 24], turned[turn][:2])
        ]  # fmt: skip
        assert len(found) == 1
        top, left, turn = found[0]
        assert np.array_equal(full[:, top : top + 24, left : left + 24], turned[turn])
        places.add(found[0])
    assert len(places) > 4 and {turn for _, _, turn in places} == {True, False}


def test_batches_of_mmengine(thumos: Path) -> None:
    data = afsd(thumos, pipeline=AUGMENTED, consistency="thumos")
    batch = pseudo_collate([data[0], data[1]])
    assert torch.stack(batch["inputs"]).shape == (2, 3, 128, 24, 24) and len(batch["data_samples"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": "nowhere"}, "no folder of frames or videos at"),
        ({"subset": "testing"}, "no video is of the subset 'testing'"),
        ({"clips": "some"}, "clips 'some' is none of windows, whole"),
        ({"pad_mode": "white"}, "pad_mode 'white' is none of"),
        ({"classes": ["wave"]}, "unknown class 'jump'"),
        ({"clip_length": 8}, "has a clip of 8 frames with a whole action"),
        ({"clip_length": 0}, "windows of 0 frames"),
        ({"pipeline": [dict(type="ReadClip"), dict(type="CropClip", size=64)]}, "a crop of 64 pixels does not fit"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str, own: Path) -> None:
    with pytest.raises(UserError, match=message):
        own_data(own, **options)[0]


def altered(own: Path, folder: Path, change: Any) -> dict[str, Any]:
    """Options with changed annotations of the same frames."""
    content = json.loads((own / "annotations.json").read_text())
    change(content["database"])
    (folder / "annotations.json").write_text(json.dumps(content))
    return {"data_root": str(folder), "frames": str(own / "frames")}


def late(database: dict[str, Any]) -> None:
    """The file says nothing of the duration, so only the frames tell."""
    for video in database.values():
        del video["duration"]
    database["training_0"]["annotations"][0]["segment"] = [5.0, 9.5]
    database["training_1"]["annotations"][0]["segment"] = [9.0, 9.5]


def test_actions_past_the_end_of_the_frames(own: Path, tmp_path: Path) -> None:
    options = altered(own, tmp_path, late)
    with pytest.raises(UserError, match=r"training_0 has an action .* of 5 to 9.5 s, and its frames end at 8.0 s"):
        own_data(own, **options)
    data = own_data(own, faults="mend", stride=16, **options)
    ends = [float(end) for i in range(len(data)) for end in data[i]["data_samples"].gt_segments[:, 1]]
    assert max(ends) == 64.0  # [50, 80] in the window of 16..80


def alone(database: dict[str, Any]) -> None:
    """The only video of the subset is one that is away."""
    for name in ("training_0", "training_1"):
        database[name]["subset"] = "other"
    database["away"] = {**database["validation_0"], "subset": "training"}


def test_absent_videos(own: Path, tmp_path: Path) -> None:
    options = altered(own, tmp_path, lambda d: d.update(away={**d["training_0"]}))
    with pytest.raises(UserError, match=r"1 of 3 videos have no frames in .*, such as away"):
        own_data(own, **options)
    assert len(own_data(own, missing="skip", **options)) == len(own_data(own))
    only = altered(own, tmp_path, alone)
    with pytest.raises(UserError, match="1 of 1 videos have no frames"):
        own_data(own, missing="skip", **only)


def clips(root: Path, split: str = "train", **options: Any) -> VideoClips:
    common: dict[str, Any] = dict(videos="videos", num_classes=2, clip_length=8, short_side=28, pipeline=RECOGNITION)
    return VideoClips(f"{split}.txt", **{**common, "data_root": str(root), **options})


def test_clips_of_a_list(kinetics: Path) -> None:
    data = clips(kinetics)
    assert len(data) == 2
    for i in range(2):
        sample = data[i]
        assert sample["inputs"].shape == (3, 8, 24, 24) and sample["inputs"].dtype == torch.uint8
        assert sample["data_samples"].gt_label.tolist() == [i]


def test_the_middle_clip_of_a_test(kinetics: Path) -> None:
    """24 frames; 8 every 2 span 15, so the middle begins at 4. Longer ones begin again."""
    plain = [dict(type="DecodeClip"), dict(type="PackClip")]
    whole = VideoFile(kinetics / "videos" / "val_0.mp4", short_side=28).read()
    clip = clips(kinetics, "val", pipeline=plain, test_mode=True)[0]["inputs"].numpy().transpose(1, 2, 3, 0)
    assert np.array_equal(clip, whole[4:20:2])
    longer = clips(kinetics, "val", pipeline=plain, test_mode=True, clip_length=16)[0]["inputs"]
    assert np.array_equal(longer.numpy().transpose(1, 2, 3, 0), whole[[*range(0, 24, 2), 0, 2, 4, 6]])


def test_augmented_clips_are_a_function_of_seed_and_place(kinetics: Path) -> None:
    def drawn(seed: int) -> list[Tensor]:
        data = clips(kinetics, seed=seed)
        sampler = PlacedSampler(data, seed=1)
        return [data[index]["inputs"] for index, _ in zip(sampler, range(4), strict=False)]

    torch.manual_seed(0)
    first = drawn(1)
    torch.manual_seed(1)
    assert same(first, drawn(1)) and not same(first, drawn(2))


def test_all_frames_get_the_same_augmentation() -> None:
    from stpt.training.clips import RandAugmentClip

    picture = np.random.default_rng(0).integers(0, 255, (28, 40, 3), dtype=np.uint8)
    changes = 0
    for seed in range(5):
        torch.manual_seed(seed)
        clip = RandAugmentClip()({"clip": np.stack([picture] * 4)})["clip"]
        assert all(np.array_equal(clip[0], frame) for frame in clip)
        changes += not np.array_equal(clip[0], picture)
    assert changes > 2


def test_clips_of_nothing(kinetics: Path) -> None:
    with pytest.raises(UserError, match="clips of 0 frames every 2 of 28 pixels"):
        clips(kinetics, clip_length=0)
    with pytest.raises(UserError, match="bad 'mend' is none of skip, refuse"):
        clips(kinetics, bad="mend")


def test_bad_videos_of_a_list(kinetics: Path, tmp_path: Path) -> None:
    bad = make_bad_videos(tmp_path / "bad")
    good = kinetics / "videos" / "train_0.mp4"
    (tmp_path / "train.txt").write_text(f"{good} 0\n{bad['text']} 1\n")
    skipping = clips(tmp_path)
    assert skipping[1]["data_samples"].gt_label.tolist() == [0]
    for options in ({"bad": "refuse"}, {"test_mode": True}):
        with pytest.raises(UserError, match=r"text\.mp4 cannot be read as a video"):
            clips(tmp_path, **options)[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "lists no video"),
        ("a.mp4\n", "line 1 is 'a.mp4'; FILE NUMBER is due"),
        ("a.mp4 2\n", "line 1 has label 2; there are 2 classes"),
        ("a.mp4 -1\n", "FILE NUMBER is due"),
        ("a.mp4 1\n", "no video at"),
    ],
)
def test_bad_lists(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        clips(tmp_path)
