"""The frames of a video as clips for a network, read once from front to back, with no more in memory than is needed."""

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stpt.training.videos import VideoFile


class FrameBuffer:
    """Stretches of a video's kept frames, each of which begins at most `kept` frames before the last that was read.

    Args:
        video: its frames are at least as large as `size`.
        size: height and width that are cut from the middle of a frame.
        kept: frames in memory.
        device: of the clips.
    """

    def __init__(self, video: VideoFile, size: Sequence[int], kept: int, device: torch.device | str = "cpu") -> None:
        self.length = len(video)
        self.size, self.kept, self.device = tuple(size), kept, device
        self._stream: Iterator[NDArray[np.uint8]] = video.stream()
        self._frames: deque[NDArray[np.uint8]] = deque(maxlen=kept)
        self._read = 0

    def clip(self, low: int, high: int) -> Tensor:
        """Frames [low, high) in [-1, 1], (1, 3, T, H, W); those behind the video are 0, as in AFSD's tests."""
        upto = min(high, self.length)
        while self._read < upto:
            self._frames.append(self._middle_of(next(self._stream)))
            self._read += 1
        first = self._read - len(self._frames)
        if low < first:
            raise ValueError(f"frame {low} is gone: of {self._read} that were read the last {self.kept} are kept")
        pixels = np.stack([self._frames[i - first] for i in range(low, upto)])
        clip = torch.zeros(1, 3, high - low, *self.size, device=self.device)
        clip[0, :, : upto - low] = torch.from_numpy(pixels).to(self.device).permute(3, 0, 1, 2) / 127.5 - 1
        return clip

    def _middle_of(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        top, left = ((side - kept) // 2 for side, kept in zip(frame.shape, self.size, strict=False))
        return frame[top : top + self.size[0], left : left + self.size[1]]
