"""Records of calls: what is kept, drawn, saved."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from made import tiny_unet
from torch import nn

from paperkit.errors import UserError
from ptq4dm.method.calibration import InputRecorder, Records, concatenated, predict


def test_calls_are_recorded_in_order() -> None:
    unet = tiny_unet(conditional=True)
    size, width = unet.config.sample_size, unet.config.cross_attention_dim
    x, context = torch.randn(4, unet.config.in_channels, size, size), torch.randn(4, 1, width)
    with torch.no_grad(), InputRecorder(unet) as recorder:
        first = unet(x, 801, encoder_hidden_states=context).sample
        unet(x, torch.tensor([1, 2, 3, 4]), context)
    unet(x, 1, context)
    records = recorder.records()
    assert len(records) == 8 and records.t.tolist() == [801] * 4 + [1, 2, 3, 4]
    with torch.no_grad():
        torch.testing.assert_close(predict(unet, records[:4]), first)


def test_class_labels() -> None:
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, num_class_embeds=3,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 2])
    with torch.no_grad(), InputRecorder(unet) as recorder:
        out = unet(x, 5, class_labels=labels).sample
        torch.testing.assert_close(predict(unet, recorder.records()), out)


def test_records_are_saved_and_drawn(tmp_path: Path) -> None:
    records = Records(torch.randn(10, 3, 4, 4), torch.arange(10), torch.randn(10, 1, 5))
    records.save(tmp_path / "records.safetensors")
    again = Records.load(tmp_path / "records.safetensors")
    assert again.tensors().keys() == {"x", "t", "context"} and torch.equal(again.x, records.x)
    drawn = records.shuffled(6, seed=1)
    assert torch.equal(drawn.t, records.shuffled(6, seed=1).t) and len(set(drawn.t.tolist())) == 6
    assert torch.equal(concatenated([records[:3], records[3:]]).x, records.x)
    with pytest.raises(UserError, match="10 calibration records; 11 are needed"):
        records.shuffled(11)


def test_odd_records_are_refused(tmp_path: Path) -> None:
    from paperkit.files.weights import save_weights

    with pytest.raises(UserError, match="3 of x and 2 of t"):
        Records(torch.zeros(3, 1), torch.zeros(2))
    save_weights(tmp_path / "other.safetensors", {"weight": torch.zeros(1)})
    with pytest.raises(UserError, match="calibration records are x, t, context"):
        Records.load(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no call"), InputRecorder(nn.Identity()) as recorder:
        recorder.records()
