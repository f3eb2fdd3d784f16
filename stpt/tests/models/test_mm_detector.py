"""The model that mmengine trains: clips of bytes, padding, losses, predictions, and the classifier of pre-training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmaction.structures import ActionDataSample
from torch import Tensor

from paperkit.errors import UserError
from paperkit.files.weights import save_weights
from stpt.models.inflation import inflate
from stpt.models.mm_classifier import STPTClassifier
from stpt.models.mm_detector import ClipPreprocessor, STPTDetector
from stpt.models.networks import create_backbone

FRAMES, SIDE = 128, 32
BACKBONE = dict(name="stpt_tiny", dims=(8, 8, 8, 16), depths=(1, 1, 1, 1), heads=(1, 1, 1, 1), drop_path=0.0)
HEAD = dict(num_classes=3, frames=FRAMES, channels=16, groups=4)


def sample(
    *actions: tuple[float, float, int], spliced: bool = False, real: int = FRAMES, pad: str = "black"
) -> ActionDataSample:
    made = ActionDataSample(
        metainfo=dict(video="a_video", offset=0, sample_fps=10.0, duration=12.8, frame_num=real, pad_mode=pad),
        gt_segments=torch.tensor([action[:2] for action in actions]).reshape(-1, 2),
        gt_labels=torch.tensor([action[2] for action in actions], dtype=torch.int64),
        start_mask=torch.zeros(FRAMES),
        end_mask=torch.zeros(FRAMES),
    )
    for start, end, _ in actions:
        made.start_mask[int(start)] = made.end_mask[int(end)] = 1
    if spliced:
        made.splice_inputs = torch.randint(0, 256, (3, FRAMES, SIDE, SIDE), dtype=torch.uint8)
        made.splice_segments = torch.tensor([[10.0, 30.0], [45.0, 70.0], [31.0, 44.0]])
    return made


def clip(seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (3, FRAMES, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def detector(**changes: Any) -> STPTDetector:
    torch.manual_seed(0)
    return STPTDetector(BACKBONE, HEAD, size=(SIDE, SIDE), **changes)


@pytest.mark.parametrize(("mode", "padded"), [("black", -1.0), ("grey", 0.0)])
def test_padding(mode: str, padded: float) -> None:
    """What stands behind a short clip."""
    short = clip()
    short[:, 100:] = 0
    samples = [sample(real=100, pad=mode), sample(pad=mode)]
    inputs = ClipPreprocessor()(dict(inputs=[short, clip(1)], data_samples=samples), True)["inputs"]
    assert inputs.shape == (2, 3, FRAMES, SIDE, SIDE) and inputs[0, :, 100:].unique().tolist() == [padded]
    torch.testing.assert_close(inputs[1], clip(1) / 255 * 2 - 1, rtol=0, atol=1e-6)
    torch.testing.assert_close(inputs[0, :, :100], short[:, :100] / 255 * 2 - 1, rtol=0, atol=1e-6)


def losses_of(model: STPTDetector, samples: list[ActionDataSample]) -> dict[str, Tensor]:
    data = dict(inputs=[clip(i) for i in range(len(samples))], data_samples=samples)
    return model.train()(**model.data_preprocessor(data, True), mode="loss")


NAMES = {"loss_l", "loss_c", "loss_prop_l", "loss_prop_c", "loss_ct", "loss_start", "loss_end"}


def test_every_weight_learns_even_without_an_action() -> None:
    """Several processes wait for the gradient of every weight."""
    for samples in ([sample((20, 90, 2), spliced=True), sample()], [sample()]):
        model = detector()
        losses = losses_of(model, samples)
        assert losses.keys() == NAMES | ({"loss_consistency"} if len(samples) == 2 else set())
        sum(losses.values()).backward()
        assert not {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}


def test_consistency_is_a_mean_over_all_clips() -> None:
    """A clip that could not be spliced adds nothing; a weight of 0 never looks."""
    pair = sample((20, 90, 2), spliced=True)
    alone, beside = (losses_of(detector(), samples)["loss_consistency"] for samples in ([pair], [pair, sample()]))
    assert alone > 0
    torch.testing.assert_close(beside, alone / 2)
    torch.testing.assert_close(losses_of(detector(consistency=0.2), [pair])["loss_consistency"], 2 * alone)
    assert "loss_consistency" not in losses_of(detector(consistency=0.0), [pair])


def test_predictions_are_the_plain_networks() -> None:
    """Windows of 0 to T frames, scores with the background first; the modes agree."""
    from stpt.method.decoding import decode
    from stpt.models.stpt import STPT

    model = detector().eval()
    plain = STPT(BACKBONE, HEAD, size=(SIDE, SIDE)).eval()
    plain.load_state_dict(model.state_dict())
    data = model.data_preprocessor(dict(inputs=[clip(), clip(1)], data_samples=[sample(real=100), sample()]), False)
    with torch.no_grad():
        found = model(**data, mode="predict")
        segments, scores = decode(plain(data["inputs"]), FRAMES)
    for i in range(2):
        torch.testing.assert_close(found[i].pred_segments, segments[i])
        torch.testing.assert_close(found[i].pred_scores, scores[i])
    assert found[0].pred_scores.shape == (63, 3) and found[0].video == "a_video"


@pytest.mark.parametrize("label", [0, 3])
def test_a_label_that_is_no_class_is_one_line(label: int) -> None:
    with pytest.raises(UserError, match=rf"a_video has the label {label}; the head has the classes 1 to 2"):
        losses_of(detector(), [sample((20, 90, label))])


@pytest.mark.parametrize(
    ("head", "loss", "told"),
    [
        ({}, dict(lw=10), "loss: .* unexpected keyword argument 'lw'"),
        ({}, dict(weights=dict(lw=10)), "loss: weight of 'lw'; the losses are loss_l"),
        (dict(variant="activitynet", levels=7), {}, "7 levels; ActivityNet's losses have ranges of lengths for 6"),
    ],
)
def test_losses_that_cannot_be_are_one_line(head: dict[str, Any], loss: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        STPTDetector(BACKBONE, {**HEAD, **head}, loss, size=(SIDE, SIDE))


@pytest.mark.parametrize("how", ["mean", "center"])
def test_start_from_a_2d_network(tmp_path: Path, how: str) -> None:
    """The way of inflation is the config's; a classifier of pictures is no part of the backbone."""
    name, state = "stages.0.patch_embed.proj.weight", create_backbone(**BACKBONE).state_dict()
    flat = {key: value.sum(2) if value.ndim == 5 else value for key, value in state.items()}
    save_weights(tmp_path / "flat.safetensors", {**flat, "head.weight": torch.ones(2, 16)})
    pretrained: dict[str, Any] = dict(pretrained=str(tmp_path / "flat.safetensors"), inflation=how)
    for model in (detector(**pretrained), STPTClassifier(BACKBONE, 2, **pretrained)):
        torch.testing.assert_close(model.backbone.state_dict()[name], inflate(flat[name], 3, how))


def test_classifier() -> None:
    """The loss falls on two clips, the scores are probabilities, a label that is no class is one line."""
    torch.manual_seed(0)
    model = STPTClassifier(BACKBONE, num_classes=2)
    samples = [ActionDataSample(metainfo=dict(frame_num=FRAMES)).set_gt_label(i) for i in (0, 1)]
    data = model.data_preprocessor(dict(inputs=[clip() // 4, clip() // 4 + 180], data_samples=samples), True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model(**data, mode="loss")["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    found = model.eval()(**data, mode="predict")
    assert all(one.pred_score.sum().item() == pytest.approx(1) for one in found)
    with pytest.raises(UserError, match="label 2; the classes of the network are 0 to 1"):
        model(data["inputs"], [samples[0], ActionDataSample().set_gt_label(2)], mode="loss")
