"""Whole tuned models in a folder, through huggingface_hub's own mixin."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from made import CLASSES, batches, same_bits

from paperkit.errors import UserError
from spt import SPTConfig, get_spt_model, measure_sensitivities
from spt.models.backbones import create_backbone
from spt.models.hub_model import SPTClassifier

VIT = ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4})
SWIN = (
    "swin_tiny_patch4_window7_224",
    {"img_size": 32, "window_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]},
)


def classifier(kind: str, arch: str, sizes: dict) -> tuple[SPTClassifier, torch.Tensor]:
    """A model with random module and entry values, its images."""
    torch.manual_seed(0)
    data = batches(side=sizes["img_size"])
    model = create_backbone(arch, CLASSES, **sizes)
    fixed = () if arch.startswith("swin") else ("cls_token",)
    values = measure_sensitivities(model, data, fixed=fixed, eval_mode=True)
    tuned = get_spt_model(model, SPTConfig(budget=1500, structured_type=kind, r=2, fixed=fixed), values)
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") else 0.0, 0.1)
    images = data[0][0]
    with torch.no_grad():
        expected = tuned.eval()(images)
        made = SPTClassifier.of(tuned, arch, sizes).eval()
        assert torch.equal(made(images), expected)
    return made, images


@pytest.mark.parametrize("where", [VIT, SWIN], ids=["vit", "swin"])
@pytest.mark.parametrize("kind", ["lora", "adapter", "none"])
def test_saved_and_loaded_by_the_mixin(kind: str, where: tuple[str, dict], tmp_path: Path) -> None:
    model, images = classifier(kind, *where)
    assert isinstance(model, PyTorchModelHubMixin)
    model.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors", "README.md"} <= {path.name for path in tmp_path.iterdir()}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["arch"] == where[0] and config["rule"]["structured_type"] == kind
    random = torch.get_rng_state()
    loaded = SPTClassifier.from_pretrained(str(tmp_path))
    assert same_bits(loaded, model.state_dict())
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    assert torch.equal(random, torch.get_rng_state())


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    model, _ = classifier("lora", *VIT)
    model.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, described = weights.read_bytes(), json.loads(config.read_text())
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        SPTClassifier.from_pretrained(str(tmp_path))
    weights.write_bytes(whole)
    for change, words in (
        ({"num_classes": CLASSES + 1}, "head"),
        ({"arch": "vit_moon"}, "no architecture 'vit_moon'"),
        ({"modules": ["blocks.9.attn.q.weight"]}, "another architecture"),
        ({"colour": "red"}, "does not describe"),
        ({"sizes": {**VIT[1], "depth": 1_000_000}}, "far larger model than model.safetensors"),
        ({"sizes": {**VIT[1], "embed_dim": 1_000_000}}, "far larger model than model.safetensors"),
        ({"sizes": {**VIT[1], "in_chans": 1}}, "in_chans 1 does not fit"),
        ({"sizes": {**VIT[1], "moon": 1}}, "timm cannot build vit_tiny_patch16_224"),
    ):
        config.write_text(json.dumps({**described, **change}))
        with pytest.raises(UserError, match=words):
            SPTClassifier.from_pretrained(tmp_path)
