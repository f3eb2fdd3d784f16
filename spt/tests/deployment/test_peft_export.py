"""The low-rank part as a peft adapter: the same outputs through peft itself, and no key may be missing."""

import json
from pathlib import Path

import pytest
import timm
import torch
from made import CLASSES, batches, tiny_vit, tuned
from peft import PeftModel
from safetensors.torch import load_file, save_file

from paperkit.errors import UserError
from spt import SPTConfig, get_spt_model, measure_sensitivities
from spt.deployment.peft_export import export_to_peft, load_from_peft
from spt.method.sensitivity import reset_head


def test_peft_loads_the_export_with_the_same_outputs(tmp_path: Path) -> None:
    spt, images = tuned(), batches()[0][0]
    assert spt.selection.modules and spt.selection.entries
    export_to_peft(spt, tmp_path)
    with torch.no_grad():
        expected = spt(images)
        torch.testing.assert_close(load_from_peft(tiny_vit(), tmp_path)(images), expected, rtol=1e-5, atol=1e-5)
        base = tiny_vit()
        base.load_state_dict(load_file(tmp_path / "base.safetensors"), strict=False)
        by_peft = PeftModel.from_pretrained(base, str(tmp_path)).eval()
        torch.testing.assert_close(by_peft(images), expected, rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["head"] and config["rank_pattern"] == config["alpha_pattern"]


def test_missing_keys_of_a_peft_file_are_refused(tmp_path: Path) -> None:
    export_to_peft(tuned(), tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    head = next(name for name in state if "head" in name)
    save_file({n: v for n, v in state.items() if n != head}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"lacks .*head"):
        load_from_peft(tiny_vit(), tmp_path)


def test_a_model_that_would_pass_over_the_adapter_is_refused(tmp_path: Path) -> None:
    """BEiT multiplies by the weight of `qkv` itself, where peft's LoRA would never be asked."""
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("beit_base_patch16_224", num_classes=CLASSES, **sizes)
    reset_head(model)
    values = measure_sensitivities(model, batches())
    made = get_spt_model(model, SPTConfig(budget=2000, r=2, drop=0, drop_path=0), values)
    for name, parameter in made.named_parameters():
        if "structured" in name:
            torch.nn.init.normal_(parameter)
    with pytest.raises(UserError, match="Beit reads the weights of tuned layers itself"):
        export_to_peft(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()
