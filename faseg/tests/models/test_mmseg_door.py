"""mmsegmentation finds FASeg's parts after `import faseg`, trains them and segments pictures by its own functions."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.structures import PixelData
from mmseg.apis import inference_model, init_model
from mmseg.structures import SegDataSample

from faseg.models.faseg import FASeg, SegmentationHead
from faseg.models.trained import from_mmseg, from_run, is_run
from paperkit.errors import UserError
from paperkit.training.openmmlab import write_data

HEAD = dict(
    conv_dim=32,
    mask_dim=32,
    pixel_decoder=dict(layers=1, dim_feedforward=32, nheads=4),
    decoder=dict(num_queries=6, nheads=4, dim_feedforward=32, layers=5, omega=4),
)
BACKBONE = dict(blocks=(1, 1, 1, 1), stem=8, width=8, outputs=16)
NORMALISED = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)


def config() -> Config:
    return Config(
        dict(
            default_scope="mmseg",
            model=dict(
                type="EncoderDecoder",
                data_preprocessor=dict(
                    type="SegDataPreProcessor", size_divisor=32, test_cfg=dict(size_divisor=32), **NORMALISED
                ),
                backbone=dict(type="FASegResNet", **BACKBONE),
                decode_head=dict(type="FASegHead", in_channels=[16, 32, 64, 128], num_classes=3, num_points=32, **HEAD),
                train_cfg=dict(),
                test_cfg=dict(mode="whole"),
            ),
            test_pipeline=[dict(type="LoadImageFromFile"), dict(type="PackSegInputs")],
        )
    )


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return init_model(config(), device="cpu")


def picture(height: int = 70, width: int = 101) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_importing_faseg_fills_the_registry() -> None:
    """In a process of its own, whichever is imported first; the command line must not load mmsegmentation."""
    code = "import {0}, sys; early = 'mmseg' in sys.modules; import {1}; " \
        "print(early, 'FASegHead' in mmseg.registry.MODELS.module_dict)"  # fmt: skip
    first = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code.format("faseg", "mmseg.registry")], capture_output=True, text=True
    )
    assert first.stdout.split() == ["False", "True"], first.stderr


def test_segments_a_picture_as_the_plain_network_does(model: Any) -> None:
    """Odd sizes: padded inside, the scores at the picture's own size."""
    result = inference_model(model, picture())
    plain = FASeg(dict(kind="resnet", **BACKBONE), 3, **HEAD)  # type: ignore[arg-type]
    plain.load_state_dict(from_mmseg(model.state_dict()))
    rgb = torch.from_numpy(picture()[..., ::-1].copy()).permute(2, 0, 1)
    scores = plain.eval().segment([rgb])[0]
    torch.testing.assert_close(result.seg_logits.data, scores, rtol=1e-5, atol=1e-5)
    assert result.pred_sem_seg.data.shape == (1, 70, 101)


def test_a_run_folder_is_a_network(model: Any, tmp_path: Path) -> None:
    """The newest checkpoint of a run, by the run's own config, with the names of its classes and its test size."""
    run = config()
    pipeline = [dict(type="LoadImageFromFile"), dict(type="ShortestEdge", sizes=64, longest=256)]
    run.test_dataloader = dict(dataset=dict(pipeline=pipeline))
    write_data(run, tmp_path / "segmentation.json")
    assert is_run(tmp_path)
    with pytest.raises(UserError, match="no whole checkpoint"):
        from_run(tmp_path)
    meta = dict(dataset_meta=dict(classes=("sky", "road", "tree")))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / "iter_3.pth")
    network = from_run(tmp_path)
    assert network.class_names == ["sky", "road", "tree"] and (network.shortest, network.longest) == (64, 256)
    rgb = torch.from_numpy(picture()[..., ::-1].copy()).permute(2, 0, 1)
    scores = inference_model(model, picture()).seg_logits.data
    torch.testing.assert_close(network.segment([rgb])[0], scores, rtol=1e-5, atol=1e-5)


def test_takes_a_training_step(model: Any) -> None:
    """Pictures of two sizes, one of them without any label."""
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.full((1, 64, 64), value))) for value in (1, 255)]
    samples[0].gt_sem_seg.data[0, :20] = 2
    data = dict(inputs=[torch.zeros(3, 64, 64, dtype=torch.uint8)] * 2, data_samples=samples)
    model.train()
    losses = model(**model.data_preprocessor(data, True), mode="loss")
    model.eval()
    assert len(losses) == 3 * 6 and all(name.startswith("decode.loss_") for name in losses)
    sum(losses.values()).backward()
    lacking = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not lacking


@pytest.mark.parametrize("label", [3, 200])
def test_a_label_that_is_no_class_is_one_line(model: Any, label: int) -> None:
    """Three classes: 3 would be "no object" for the losses, and anything above an index error."""
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.full((1, 64, 64), label)))
    sample.set_metainfo(dict(seg_map_path="maps/7.png"))
    data = dict(inputs=[torch.zeros(3, 64, 64, dtype=torch.uint8)], data_samples=[sample])
    with pytest.raises(UserError, match=rf"maps/7\.png holds the label {label}; the head has the classes 0 to 2"):
        model(**model.data_preprocessor(data, True), mode="loss")


def test_refuses_one_class() -> None:
    from faseg.models.mm_head import FASegHead

    assert issubclass(FASegHead, SegmentationHead)
    with pytest.raises(UserError, match="num_classes 1"):
        FASegHead([8, 8, 8, 8], 1)


def test_refuses_an_unknown_swin(tmp_path: Path) -> None:
    from faseg.models.mm_head import FASegResNet, FASegSwin

    with pytest.raises(UserError, match="swin_t"):
        FASegSwin("swin_x")
    with pytest.raises(UserError, match=r"nothing\.pth"):
        FASegResNet(pretrained=str(tmp_path / "nothing.pth"), **BACKBONE)  # type: ignore[arg-type]
