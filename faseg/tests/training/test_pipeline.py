"""The authors' resize, mean over labelled classes, and mean over sizes."""

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image
from torch import nn

from faseg.training.labelled_iou import LabelledIoU
from faseg.training.multi_scale import MeanOfScores
from faseg.training.shortest_edge import ShortestEdge, resized_shape


@pytest.mark.parametrize(
    ("height", "width", "size", "longest", "expected"),
    [
        (512, 683, 512, 2048, (512, 683)),
        (683, 512, 256, 2048, (342, 256)),  # 341.5 is rounded up
        (100, 1000, 512, 2048, (205, 2048)),  # 204.8, held by the longer side
        (20, 30, 512, 2048, (512, 768)),
        (1, 5000, 512, 2048, (1, 2048)),  # 0.4 would be no picture
    ],
)
def test_shape_is_the_authors(height: int, width: int, size: int, longest: int, expected: tuple[int, int]) -> None:
    assert resized_shape(height, width, size, longest) == expected


def test_resize_is_pillows() -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (40, 60, 3), dtype=np.uint8)
    labels = generator.integers(0, 4, (40, 60), dtype=np.uint8)
    given = dict(img=pixels, gt_seg_map=labels, seg_fields=["gt_seg_map"])
    out = ShortestEdge(20, 100)(given)
    assert np.array_equal(out["img"], np.asarray(Image.fromarray(pixels).resize((30, 20), Image.Resampling.BILINEAR)))
    nearest = Image.fromarray(labels).resize((30, 20), Image.Resampling.NEAREST)
    assert np.array_equal(out["gt_seg_map"], np.asarray(nearest)) and out["img_shape"] == (20, 30)
    np.random.seed(0)
    assert {ShortestEdge((20, 30), 100)(given)["img"].shape[0] for _ in range(20)} == {20, 30}


def test_iou_passes_over_classes_without_label() -> None:
    """Class 1 of three has no label and 1 predicted pixel: mmsegmentation's mean would count it as 0."""
    metric = LabelledIoU(iou_metrics=["mIoU"])
    metric.dataset_meta = dict(classes=("a", "b", "c"))
    predicted, label = torch.tensor([[0, 1, 2, 2]]), torch.tensor([[0, 0, 2, 255]])
    sample = dict(pred_sem_seg=dict(data=predicted), gt_sem_seg=dict(data=label))
    metric.process({}, [sample])
    found = metric.compute_metrics(metric.results)
    assert isinstance(found, dict | OrderedDict) and found["mIoU"] == pytest.approx(75.0)  # of 1/2 and 1


class Scorer(nn.Module):
    """Gives its inputs back as score maps, in samples of their own."""

    def test_step(self, data: dict[str, Any]) -> list[SegDataSample]:
        samples = [SegDataSample() for _ in data["inputs"]]
        for sample, scores in zip(samples, data["inputs"], strict=True):
            sample.seg_logits = PixelData(data=scores)
        return samples


def test_scores_of_all_sizes_are_averaged() -> None:
    """Not their softmax, which would choose class 1 here."""
    first, second = torch.tensor([[[9.0]], [[0.0]]]), torch.tensor([[[0.0]], [[3.0]]])
    versions = [[first], [second], [second]]
    model = MeanOfScores(Scorer())
    (sample,) = model.test_step(dict(inputs=versions, data_samples=[[None]] * 3))
    (merged,) = model.merge_preds([[Scorer().test_step(dict(inputs=version))[0] for version in versions]])
    for found in (sample, merged):
        assert found.seg_logits.data.flatten().tolist() == pytest.approx([3, 2])
        assert found.pred_sem_seg.data.item() == 0
