"""Mask R-CNN over a binary Swin on a made folder of COCO's layout: killed and resumed, judged, refused."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from made import CONFIGS, CPU, bivit, merged, small_network, write_yaml

from bivit.models.binarize import METHODS, BinaryConfig
from bivit.models.detector import SwinFeatures
from paperkit.data.coco import CocoData, resized_crop
from paperkit.doors import mask_rcnn as door
from paperkit.errors import UserError
from paperkit.files.weights import read_weights
from paperkit.results.metrics import Metrics
from paperkit.testing.commands import at_call
from paperkit.testing.made_images import make_coco
from paperkit.testing.runs import check_same_runs

pytestmark = pytest.mark.xdist_group("detection")
NAME = "swin_tiny_patch4_window7_224"
TINY = {"embed_dim": 12, "depths": [1, 1, 2, 1], "num_heads": [2, 2, 4, 4]}


SMALL_HEADS = """
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNN
from paperkit.doors import mask_rcnn

class Small(MaskRCNN):
    def __init__(self, backbone, num_classes, **options):
        few = dict(box_batch_size_per_image=16, box_detections_per_img=4, rpn_post_nms_top_n_test=20)
        super().__init__(backbone, num_classes, **{**options, **few})
        self.roi_heads.box_head = TwoMLPHead(256 * 49, 16)
        self.roi_heads.box_predictor = FastRCNNPredictor(16, num_classes)

mask_rcnn.MaskRCNN = Small
"""
"""torchvision's heads are as large for a made image as for COCO's: seconds a step, half a gigabyte a checkpoint."""


@pytest.fixture(scope="module", autouse=True)
def _small_heads() -> Iterator[None]:
    with mock.patch.object(door, "MaskRCNN"):
        exec(SMALL_HEADS, {})
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps."""
    folder = tmp_path_factory.mktemp("detection")
    content = merged(CONFIGS / "coco" / "mask_rcnn_swin_tiny.yaml")
    content["detection"].update(weights=None, min_sizes=[64, 80], max_size=128, epochs=1, options=TINY)
    content["data"].update(root=str(make_coco(folder / "coco")), num_workers=0)
    content["trainer"] = CPU
    content["save_every"] = 1
    write_yaml(folder / "recipe.yaml", content)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    bivit.here("train", "--config", "recipe.yaml", "--name", "whole", cwd=folder)
    return folder / "runs" / "bivit" / "whole"


def test_killed_and_resumed_gives_the_same_run(folder: Path, whole: Path) -> None:
    step = "bivit.training.detection:DetectionTraining.training_step"
    words = ["train", "--config", "recipe.yaml", "--name", "cut"]
    bivit.child(*words, cwd=folder, patch=SMALL_HEADS + at_call(step, 2), code=-9)
    torch.rand(7)
    bivit.here("train", "--resume", "cut", cwd=folder)
    check_same_runs(whole, folder / "runs" / "bivit" / "cut")


def test_only_the_attention_of_the_backbone_is_binary(whole: Path) -> None:
    scales = [key for key in read_weights(whole / "detector.safetensors") if key.endswith("scaling_factor")]
    assert len(scales) == 10 and all(".attn." in key and key.startswith("backbone.body.body.") for key in scales)


def test_evaluated_as_it_was_trained(folder: Path, whole: Path) -> None:
    trained = {row.metric: row.values for row in Metrics.read(whole / "metrics.json").rows}
    assert {"val/box_AP", "val/mask_AP"} <= trained.keys()
    assert "val/box_AP" in bivit.here("eval", "--ckpt", whole, cwd=folder).out
    evaluated = {row.metric: row.values for row in Metrics.read(whole / "metrics.json").rows}
    assert trained.keys() == evaluated.keys()
    assert all(values == pytest.approx(evaluated[metric]) for metric, values in trained.items())


def test_backbone_takes_a_classifiers_weights() -> None:
    """All of it but norm and head; the maps have a norm each, and any size of image runs."""
    source = small_network(NAME, None)
    sizes = {"patch_size": 2, "window_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4]}
    features = SwinFeatures(NAME, BinaryConfig(mlp="float"), source.state_dict(), "S", sizes).eval()
    body = features.body.state_dict()
    for key, value in source.state_dict().items():
        assert key.startswith(("norm.", "head.")) or torch.equal(body[key], value)
    maps = features(torch.randn(1, 3, 44, 60))
    assert [tuple(x.shape) for x in maps] == [(1, 12, 22, 30), (1, 24, 11, 15)]
    with pytest.raises(UserError, match="the detector's backbone is a Swin"):
        SwinFeatures("deit_tiny_patch16_224", METHODS["bivit"])


def test_crop_keeps_what_it_keeps(tmp_path: Path) -> None:
    """Bright boxes stay under their boxes and masks; sides are within the policy's."""
    data = CocoData(str(make_coco(tmp_path, count=8)), num_workers=0)
    data.setup()
    kept = 0
    for i in range(8):
        torch.manual_seed(i)
        image, target = resized_crop(*data.train_images[i])
        assert all(384 <= side <= 600 for side in image.shape[1:])
        assert target["masks"].shape[1:] == image.shape[1:] and len(target["boxes"]) == len(target["labels"])
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            left, top, right, bottom = box.round().int().tolist()
            if min(right - left, bottom - top) > 8:
                kept += 1
                assert mask[top:bottom, left:right].float().mean() > 0.9
                assert image[:2, top + 4 : bottom - 4, left + 4 : right - 4].amax(0).mean() > 0.8
    assert kept >= 3


REFUSALS = {
    "--detection.min_sizes []": "min_sizes []: one at least",
    "--detection.name deit_tiny_patch16_224": "the detector's backbone is a Swin",
    "--detection.weights nowhere.pth": "no weights at nowhere.pth",
    "--data.root nowhere": "the data root must hold",
    "--binary.depth 0": "depth 0",
    "--data.categories [cat,bird]": "has no category bird; it has cat, dog",
}


@pytest.mark.parametrize("words", REFUSALS)
def test_refused_in_one_line(words: str, folder: Path) -> None:
    assert REFUSALS[words] in bivit.refused("train", "--config", "recipe.yaml", *words.split(), cwd=folder)
