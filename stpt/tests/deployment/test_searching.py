"""A video file through a network: the windows are those of the whole video, and sharing changes them a little."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made import frames_of, make_variable, make_video, write_video
from torch import Tensor, nn

from paperkit.errors import UserError
from stpt.deployment.detecting import class_names, detect, usual
from stpt.deployment.features import video_features
from stpt.deployment.frame_buffer import FrameBuffer
from stpt.deployment.searching import Search, SearchedVideo, search_of
from stpt.method.backbone import PositionalConvolution
from stpt.method.decoding import decode
from stpt.method.soft_nms import PostProcess
from stpt.models.labels import THUMOS14
from stpt.models.stpt import STPT
from stpt.training.videos import VideoFile, read_video

FRAMES, SIDE = 64, 32


def small(name: str = "stpt_tiny", variant: str = "thumos", **more: object) -> STPT:
    """A network of two classes on clips of 64 frames, with positional convolutions that do something."""
    torch.manual_seed(0)
    backbone = {} if name == "i3d" else dict(dims=(8, 16, 32, 32), depths=(1, 1, 1, 1), heads=(1, 1, 2, 2))
    detector = dict(num_classes=3, frames=FRAMES, levels=3, channels=32, groups=8, variant=variant)
    network = STPT({"name": name, **backbone}, detector, (SIDE, SIDE), **{"fps": 10.0, **more})  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, PositionalConvolution):
            nn.init.normal_(module.weight, std=0.2)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> STPT:
    return small()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22.1 s at 20 frames a second, of which every second is kept: 221 frames."""
    pixels = frames_of([(3.0, 6.0, "BaseballPitch")], 442, fps=20.0, size=(48, 64))
    return write_video(tmp_path_factory.mktemp("video") / "play.mp4", pixels, 20.0)


def clips_of(path: Path, offsets: list[int]) -> Tensor:
    """The windows as one would cut them from the array of the whole video."""
    frames, _ = read_video(path, fps=10, size=(37, 37))
    whole = torch.from_numpy(frames[:, 2:34, 2:34].copy()).permute(3, 0, 1, 2) / 127.5 - 1
    return torch.stack([whole[:, offset : offset + FRAMES] for offset in offsets])


@pytest.mark.parametrize("batch", [1, 3])
def test_windows_are_those_of_the_whole_video(network: STPT, path: Path, batch: int) -> None:
    video, told = SearchedVideo(network, path, Search(batch=batch)), []
    assert video.offsets == [0, 32, 64, 96, 128, 157]
    cells = video.cells(advance=told.append)
    with torch.inference_mode():
        segments, scores = decode(network(clips_of(path, video.offsets)), FRAMES)
    torch.testing.assert_close(cells.segments, segments, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cells.scores, scores, rtol=1e-4, atol=1e-5)
    assert cells.drift is None and sum(told) == 6


def test_sharing_drifts_a_little_and_says_how_much(network: STPT, path: Path) -> None:
    alone, shared = (SearchedVideo(network, path, Search(share=share)).cells(0.0) for share in (False, True))
    # The last window lies off the grid of shared frames, and is computed alone.
    torch.testing.assert_close(shared.scores[-1], alone.scores[-1], rtol=1e-4, atol=1e-5)
    change = (shared.scores - alone.scores)[2, :, 1:].abs().max()
    drift = shared.drift
    assert drift is not None and drift.score == pytest.approx(float(change), rel=1e-2) and 0 < change < 0.2
    assert drift.frames == pytest.approx(float((shared.segments - alone.segments)[2].abs().max()), rel=1e-2)
    assert len(drift.maps) == 2 and all(0 < value < 1 for value in drift.maps) and "maps drift by" in str(drift)


def test_a_short_video_is_filled_up_and_nothing_lies_behind_its_end(network: STPT, tmp_path: Path) -> None:
    """3.0 s: 30 frames of 64; the rest is 0 after normalisation, and segments there are cut or left out."""
    video = SearchedVideo(network, make_video(tmp_path / "short.mp4", 3.0), Search(share=True))
    assert video.offsets == [0]
    clip = video.frames.clip(0, FRAMES)
    assert not clip[:, :, 30:].any() and clip[:, :, :30].abs().min() > 0
    bars, drift = detect(
        SearchedVideo(network, tmp_path / "short.mp4", Search()), PostProcess(above=1e-6, min_score=1e-6)
    )
    assert drift is None and bars and all(0 <= bar.start < bar.end <= 3.0 + 1e-6 for bar in bars)
    assert [bar.score for bar in bars] == sorted((bar.score for bar in bars), reverse=True)  # type: ignore[type-var]


def test_a_variable_rate_is_sampled_by_time(network: STPT, tmp_path: Path) -> None:
    video = SearchedVideo(network, make_variable(tmp_path / "variable.mkv"), Search())
    info = video.video.info
    assert info.variable and abs(len(video.video) - 10 * info.duration) <= 1


def test_one_clip_of_the_whole_video_for_activitynet(tmp_path: Path) -> None:
    """Whatever its length: 90 frames at 15 a second are sampled to 64."""
    network = small(variant="activitynet", fps=None)
    path = write_video(tmp_path / "long.mp4", frames_of((), 90, size=(48, 64)), 15.0)
    video = SearchedVideo(network, path, Search())
    assert video.offsets == [0] and len(video.video) == FRAMES
    assert video.video.info.sample_fps == pytest.approx(15 * 64 / 90)
    assert usual(network).sigma == 0.85 and len(video.cells().segments) == 1


def test_refuses_what_cannot_be(network: STPT, path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="steps of 16; 40 is no multiple"):
        SearchedVideo(network, path, Search(stride=40, share=True))
    with pytest.raises(UserError, match="batch 0"):
        SearchedVideo(network, path, Search(batch=0))
    with pytest.raises(UserError, match="I3D looks beyond any window"):
        SearchedVideo(small("i3d"), path, Search(share=True))
    with pytest.raises(UserError, match=r"nothing\.mp4"):
        SearchedVideo(network, tmp_path / "nothing.mp4", Search())


def test_frames_that_are_gone_are_an_error(path: Path) -> None:
    buffer = FrameBuffer(VideoFile(path, 10.0, (37, 37)), (SIDE, SIDE), kept=80)
    first = buffer.clip(0, 64)
    torch.testing.assert_close(buffer.clip(10, 90)[:, :, :54], first[:, :, 10:])
    with pytest.raises(ValueError, match="frame 9 is gone"):
        buffer.clip(9, 20)


def test_names_of_classes(network: STPT) -> None:
    assert class_names(network) == ["class 1", "class 2"]
    assert class_names(small(classes=["wave", "jump"])) == ["wave", "jump"]
    with torch.device("meta"):
        assert class_names(STPT()) == list(THUMOS14)


def test_features_are_rows_of_the_windows_that_see_most_around_them(network: STPT, path: Path) -> None:
    """Stage 4: a row for 8 frames; windows at 0, 32, ... 157 give 8 rows each, of which the middle ones are taken."""
    video, told = SearchedVideo(network, path, Search(batch=4)), []
    rows, frames = video_features(video, 4, told.append)
    with torch.inference_mode():
        maps = network.backbone(clips_of(path, video.offsets))[1].mean((3, 4)).transpose(1, 2)
    assert frames == 8 and rows.shape == (28, 32) and sum(told) == 6
    torch.testing.assert_close(rows[:6], maps[0, :6], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows[6:10], maps[1, 2:6], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows[-4:], maps[-1, -4:], rtol=1e-4, atol=1e-5)
    finer, frames = video_features(SearchedVideo(network, path, Search()), 3)
    assert frames == 4 and finer.shape == (56, 32)
    with pytest.raises(UserError, match="stage 2: the network's backbone gives the maps of 3, 4"):
        video_features(video, 2)


def test_a_search_by_options() -> None:
    class Options:
        stride, batch, share, other = 16, 2, True, "left out"

    assert search_of(Options()) == Search(16, 2, True)
    assert np.isclose(search_of(Options(), rate=25.0).rate, 25)
