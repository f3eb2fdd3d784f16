"""RetinaNet and Mask R-CNN on a made folder of COCO's layout; released backbones; bad input."""

from pathlib import Path

import made
import pytest
import torch
from made import (  # noqa: F401
    LITV2,
    EngineCases,
    World,
    full_disk,
    options_of,
    write_detection,
)

from litv2.models.backbone import LITv2Backbone
from litv2.models.detectors import build_detector, load_backbone
from litv2.training import detection
from litv2.training.detection import DetectionConfig, parameter_groups
from paperkit.data.coco import CocoData, CocoImages, as_results, average_precision
from paperkit.errors import UserError
from paperkit.files.runs import RunFolder
from paperkit.results.metrics import Metrics
from paperkit.testing.made_images import make_coco
from paperkit.training.detection import rate_factor

CONFIGS = sorted((made.CONFIGS / "coco").glob("*.yaml"))
SHRINK = dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("detection")
    step, diverge = "litv2.training.detection:DetectionTraining.training_step", ["--detection.lr", "1e30"]
    config, data = write_detection(folder), ["--data.root", ""]
    kill = "litv2.training.detection:DetectionTraining.validation_step", 1
    return World(folder, config, step, kill, "detector.safetensors", data, "the data root must hold", diverge)


class TestEngine(EngineCases):
    """Of detection, with RetinaNet."""


def test_a_run_evaluates_as_it_was_trained(world: World) -> None:
    file = world.run("whole") / "metrics.json"
    trained = {row.metric: row.values for row in Metrics.read(file).rows}
    assert "val/box_AP" in LITV2.here("eval", "--ckpt", world.run("whole"), cwd=world.folder).out
    evaluated = {row.metric: row.values for row in Metrics.read(file).rows}
    assert trained.keys() == evaluated.keys()
    assert all(values == pytest.approx(evaluated[metric]) for metric, values in trained.items())


def test_mask_rcnn_trains_one_step_and_is_judged(tmp_path: Path) -> None:
    """The recipe of LITv2-B with window 4 and activation checkpointing."""
    config = write_detection(tmp_path, "mask_rcnn_litv2_b_ws4", count=2, epochs=1)
    run = RunFolder.create(tmp_path / "runs", "litv2", "one")
    training = detection.train(run, options_of(detection, config), resuming=False)
    assert training.trainer.global_step == 1
    metrics = {row.metric for row in Metrics.read(run.path / "metrics.json").rows}
    assert {"val/box_AP", "val/mask_AP"} <= metrics


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_recipe_as_published(path: Path) -> None:
    config = options_of(detection, path).detection
    retina, large = "retinanet" in path.stem, "_b_" in path.stem
    assert isinstance(config, DetectionConfig) and config.lr == (1e-4 if retina else 2e-4)
    assert config.weight_decay == 1e-4 and config.epochs == 12 and config.grad_checkpointing == large
    assert config.drop_path_rate == (0.3 if large else 0.2) and config.window == int(path.stem[-1])
    with torch.device("meta"):
        model = build_detector(config.detector, config.name, config.window, 80, None, config.drop_path_rate)
    groups = parameter_groups(model, config)
    assert len(groups) == (1 if retina else 2) and groups[0]["weight_decay"] == 1e-4
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    published = {"retinanet": dict(s=38, m=59, b=97), "mask_rcnn": dict(s=47, m=68, b=106)}
    assert millions == pytest.approx(published[config.detector][path.stem.split("_")[-2]], abs=1.2)
    body = model.backbone.body
    assert body.out_norms == (1, 2, 3) and body.layers[2].blocks[0].attn.window_size == config.window
    curve = 1000, config.milestones, config.warmup_iters, config.warmup_factor
    factors = [rate_factor(step, *curve) for step in (0, 250, 500, 7999, 8000, 11000)]
    assert factors == pytest.approx([1e-3, 0.5005, 1, 1, 0.1, 0.01])


def test_average_precision_of_perfect_and_wrong_results(tmp_path: Path) -> None:
    images = CocoImages(make_coco(tmp_path), "val2017")
    perfect, shifted = [], []
    for i in range(len(images)):
        _, target = images[i]
        masks = target["masks"][:, None].float()
        output = dict(boxes=target["boxes"], labels=target["labels"], scores=torch.ones(1), masks=masks)
        boxes, segments = as_results(output, int(target["image_id"]), images, 1)
        perfect += boxes
        shifted += [{**entry, "bbox": [0, 60, 10, 10]} for entry in boxes]
        assert average_precision(images, segments, "segm")["AP50"] > 0
    assert average_precision(images, perfect)["AP"] == pytest.approx(100)
    assert average_precision(images, shifted)["AP"] == 0 == average_precision(images, [])["AP"]


def test_flip_moves_boxes_and_masks_together(tmp_path: Path) -> None:
    data = CocoData(str(make_coco(tmp_path)), num_workers=0, flip=1.0)
    data.setup()
    for batch in data.train_dataloader():
        for image, target in batch:
            left, top, right, bottom = target["boxes"][0].int().tolist()
            assert target["masks"][0, top:bottom, left:right].float().mean() > 0.9
            assert image[:2, top:bottom, left:right].amax(0).mean() > 0.8


def test_released_detector_file_fills_the_backbone(tmp_path: Path) -> None:
    source = LITv2Backbone(out_norms=(1, 2, 3), **SHRINK)
    state = {f"module.backbone.{key}": value for key, value in source.state_dict().items()}
    state["module.neck.lateral_convs.0.conv.weight"] = torch.zeros(1)
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "retinanet.pth")
    target = LITv2Backbone(out_norms=(1, 2, 3), **SHRINK, local_ws=(0, 0, 4, 1))  # another window is fine
    load_backbone(target, tmp_path / "retinanet.pth")
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_bad_input(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "coco")
    with pytest.raises(UserError, match="has no category bird; it has cat, dog"):
        CocoImages(root, "train2017", ["cat", "bird"])
    with pytest.raises(UserError, match="the data root must hold"):
        CocoImages(tmp_path / "nowhere", "train2017")
    (root / "annotations" / "instances_val2017.json").write_text('{"images": [')
    with pytest.raises(UserError, match="is damaged or no COCO file"):
        CocoImages(root, "val2017")
    with pytest.raises(UserError, match="window 1: stage 3 takes 2 or more"):
        build_detector(window=1)
