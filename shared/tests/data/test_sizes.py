"""Sizes as a function of the epoch: in the schedule, in batches from workers that stay, and what a model takes."""

from pathlib import Path

import pytest
import timm
import torch

from paperkit.data.digits import DigitsData
from paperkit.data.images import ImageData
from paperkit.data.sizes import SizeSchedule, check_sizes
from paperkit.errors import UserError
from paperkit.testing.made_images import make_image_folder


def test_the_size_of_an_epoch() -> None:
    schedule = SizeSchedule({10: 176, 0: 128, 20: 224}, 224)
    assert [schedule.at(epoch) for epoch in (0, 9, 10, 19, 20, 99)] == [128, 128, 176, 176, 224, 224]
    assert schedule.sizes == [128, 176, 224]
    assert SizeSchedule(None, 32).sizes == [32] and SizeSchedule({}, 32).at(7) == 32
    schedule.check_length(27)
    with pytest.raises(UserError, match="full size in epoch 20 of 26; the last quarter"):
        schedule.check_length(26)
    SizeSchedule(None, 32).check_length(1)


@pytest.mark.parametrize(
    ("stages", "line"),
    [
        ({1: 16, 2: 32}, "must begin with epoch 0"),
        ({0: 32, 2: 16}, "must end with the full size, 32"),
        ({0: -4, 2: 32}, "a size below 1"),
    ],
)
def test_schedules_that_make_no_sense(stages: dict[int, int], line: str) -> None:
    with pytest.raises(UserError, match=line):
        SizeSchedule(stages, 32)


def test_what_a_model_takes() -> None:
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    fixed = timm.create_model("vit_tiny_patch16_224", **size).train()
    with pytest.raises(UserError, match=r"size_schedule does not go together with this VisionTransformer.*16 px"):
        check_sizes(fixed, [16, 32])
    assert fixed.training
    check_sizes(timm.create_model("vit_tiny_patch16_224", **size, dynamic_img_size=True), [16, 32])
    check_sizes(timm.create_model("test_resnet"), [32, 64])


def sides(loader: torch.utils.data.DataLoader, epoch: int) -> set[int]:
    loader.sampler.set_epoch(epoch)
    return {images.shape[-1] for images, _ in loader}


@pytest.mark.parametrize("workers", [0, 2])
def test_every_batch_of_an_epoch_has_its_size(tmp_path: Path, workers: int) -> None:
    """Workers that persist from one epoch to the next as well, and evaluation is at full size."""
    make_image_folder(tmp_path, ("a", "b"), per_class=6, size=40)
    data = ImageData(
        str(tmp_path), num_classes=2, batch_size=4, num_workers=workers, input_size=32, size_schedule={0: 16, 2: 32}
    )
    data.setup()
    loader = data.train_dataloader()
    assert [sides(loader, epoch) for epoch in (0, 1, 2)] == [{16}, {16}, {32}]
    assert {images.shape[-1] for images, _ in data.val_dataloader()} == {32}


def test_digits() -> None:
    data = DigitsData(batch_size=400, size=8, size_schedule={0: 4, 1: 8})
    loader = data.train_dataloader()
    assert [sides(loader, epoch) for epoch in (0, 1)] == [{4}, {8}]
    assert {images.shape[-1] for images, _ in data.test_dataloader()} == {8}


def test_refused_by_data_that_cannot(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stream.*size_schedule"):
        ImageData(str(tmp_path), "wds/x", size_schedule={0: 112, 9: 224})
    with pytest.raises(UserError, match="size_schedule and train_crop padded"):
        ImageData(str(tmp_path), "cifar10", input_size=32, train_crop="padded", size_schedule={0: 16, 9: 32})
