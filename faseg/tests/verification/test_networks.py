"""Kinds that no small file of the authors covers: whole networks, from their parts step by step; altered names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from faseg.models.faseg import MEAN, STD
from faseg.verification.kinds import KINDS
from faseg.verification.networks import tiny_network
from paperkit.testing.golden import (
    changed,
    check_altered_results_fail,
    check_unknown_option_is_refused,
    check_verifies,
    verified,
)

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES, OUTPUTS = [[40, 33], [33, 60]], [[20, 30], [33, 60]]
CONFIG: dict[str, Any] = dict(
    num_classes=3, conv_dim=32, mask_dim=32, hidden_dim=32, num_queries=4, nheads=4, dim_feedforward=8,
    decoder_layers=5, pixel_encoder_layers=1, pixel_encoder_ffn=16, omega_rate=2, size_divisibility=32,
    image_sizes=SIZES, output_sizes=OUTPUTS, pixel_mean=list(MEAN), pixel_std=list(STD), format="RGB", seed=0,
)  # fmt: skip
BACKBONES = {
    "r50": dict(
        depth=50, blocks=[1, 1, 1, 1], stem_out=8, res2_out=8, bottleneck=4, stride_in_1x1=False, norm="FrozenBN"
    ),
    "swin": dict(
        dim=8, depths=[2, 1, 1, 1], heads=[1, 1, 2, 2], window=2, mlp_ratio=2, patch=4, patch_norm=True, qkv_bias=True
    ),
}


@pytest.fixture(scope="module", params=BACKBONES)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the authors' are: padded together, scores cut to the picture, then resized; all in float64."""
    torch.manual_seed(0)
    config = {**CONFIG, "kind": request.param, "backbone": BACKBONES[request.param]}
    model = tiny_network(config).eval().double()
    tensors = {f"sd.{key}": value.float() for key, value in model.state_dict().items() if value.is_floating_point()}
    tensors |= {f"sd.{k}": v for k, v in model.state_dict().items() if not v.is_floating_point()}
    batch = torch.zeros(2, 3, 64, 64)
    for i, (height, width) in enumerate(SIZES):
        image = tensors[f"in.image.{i}"] = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        for channel in range(3):
            batch[i, channel, :height, :width] = (image[channel] - torch.tensor(MEAN[channel])) / STD[channel]
    with torch.no_grad():
        maps = model.backbone(batch.double())
        pixels = model.sem_seg_head.pixel_decoder(maps)
        out = model.sem_seg_head.predictor(pixels.features, pixels.positions, pixels.mask_features)
    tensors |= {f"out.backbone.res{i}": x.float() for i, x in enumerate(maps, 2)}
    tensors |= {f"out.{name}": out[name].float() for name in ("pred_logits", "pred_masks")}
    chances = F.interpolate(out["pred_masks"], (64, 64), mode="bilinear").sigmoid()
    for i, ((height, width), size) in enumerate(zip(SIZES, OUTPUTS, strict=True)):
        scores = torch.einsum("qk,qyx->kyx", out["pred_logits"][i].softmax(-1)[:, :3], chances[i])
        scores = F.interpolate(scores[None, :, :height, :width], size, mode="bilinear")[0]
        tensors[f"out.sem_seg.{i}"] = scores.float()
    path = tmp_path_factory.mktemp("model") / f"model_{request.param}.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, {"kind": "model", "config": json.dumps(config)})
    return path


def test_whole_network(file: Path, tmp_path: Path) -> None:
    check_verifies(file, KINDS)
    check_altered_results_fail(file, KINDS, tmp_path)
    check_unknown_option_is_refused(file, KINDS, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(kind="vit"), "option kind is 'vit'; known: r50, swin"),
        (lambda c: c.update(format="BGR"), "option format is 'BGR'; known: 'RGB'"),
        (lambda c: c.update(decoder_layers=101), "config.decoder_layers is 101; the most"),
        (lambda c: c.update(image_sizes=[[1, 2]]), "config.image_sizes is [[1, 2]]; the tensors have"),
        (lambda c: c.update(output_sizes=[]), "output_sizes has 0 sizes for 2 pictures"),
        (lambda c: c["backbone"].update(more=1), "unknown option 'more' in backbone"),
        (lambda c: c.update(conv_dim=64, hidden_dim=64), "misshapen"),
        (lambda c: c.update(hidden_dim=64), "option hidden_dim is 64; known: 32"),
    ],
)
def test_impossible_network_is_one_line(file: Path, change: Any, message: str, tmp_path: Path) -> None:
    good, printed = verified(changed(file, tmp_path, config=change), KINDS)
    assert not good and message in printed, printed


def test_altered_names_fail(tmp_path: Path) -> None:
    name = "state_dict_keys_ade_faseg_r50"
    shapes = json.loads((GOLDEN / f"{name}.json").read_text())
    key = "sem_seg_head.pixel_decoder.pos_linear.3.weight"
    for altered, told in (
        ({**shapes, key: [256, 1, 3, 4]}, f"FAIL  config.{key}"),
        ({**shapes, "surprise": [1]}, "FAIL  config.surprise  not computed"),
        ({k: v for k, v in shapes.items() if k != key}, "FAIL  keys that the file lacks"),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(altered))
        good, printed = verified(tmp_path / f"{name}.json", KINDS)
        assert not good and told in printed
    (tmp_path / "state_dict_keys_other.json").write_text(json.dumps(shapes))
    good, printed = verified(tmp_path / "state_dict_keys_other.json", KINDS)
    assert not good and "'other' is no release" in printed
