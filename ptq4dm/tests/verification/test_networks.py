"""Official U-Nets of other options than the stored reference: ours against a file that we write."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made_checkpoints import TINY
from safetensors.torch import save_file

from paperkit.testing.golden import verified
from ptq4dm.models.compvis import to_official, unet_names
from ptq4dm.models.latent_diffusion import build_unet
from ptq4dm.verification.kinds import KINDS

OFFICIAL = ("image_size", "in_channels", "out_channels", "model_channels", "attention_resolutions", "num_res_blocks",
            "channel_mult", "num_heads", "num_head_channels", "use_spatial_transformer", "transformer_depth",
            "context_dim", "use_scale_shift_norm", "resblock_updown")  # fmt: skip


def write(path: Path, name: str, **changed: Any) -> Path:
    torch.manual_seed(1)
    options = TINY[name].unet
    unet = build_unet(options).eval()
    inputs = {"x": torch.randn(2, options.in_channels, 8, 8), "t": torch.tensor([1, 951])}
    if options.context_dim is not None:
        inputs["context"] = torch.randn(2, 1, options.context_dim)
    names = unet_names(unet)
    with torch.no_grad():
        y = unet(*inputs.values()).sample
    tensors = {f"in.{key}": value for key, value in inputs.items()} | {"out.y": y}
    tensors |= {f"sd.{key}": value.detach().clone() for key, value in to_official(unet, names).items()}
    official = {key: getattr(options, key) for key in OFFICIAL} | changed
    config = {"official": official, "norm_num_groups": options.norm_num_groups}
    key_map = {key: list(parts) if len(parts) > 1 else parts[0] for key, parts in names.items()}
    about = {"kind": "unet", "config": json.dumps(config), "key_map": json.dumps(key_map)}
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, about)
    return path


@pytest.mark.parametrize("name", TINY)
def test_a_made_file_verifies(name: str, tmp_path: Path) -> None:
    good, printed = verified(write(tmp_path / "unet.safetensors", name), KINDS)
    assert good and "key_map  error 0" in printed, printed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_heads": 4}, "FAIL  out.y"),
        ({"num_heads": 3}, "not a multiple of 3 heads"),
        ({"channel_mult": [1, 3]}, "does not fit"),
        ({"model_channels": 10**9}, "FAIL"),
        ({"hidden": 1}, "option hidden"),
    ],
)
def test_other_options_fail_in_a_line(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    good, printed = verified(write(tmp_path / "unet.safetensors", "churches", **changed), KINDS)
    assert not good and message in printed, printed
