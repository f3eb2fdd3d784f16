"""What the tests share: a U-Net of milliseconds, folders of it, the command, and what config files give."""

from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel
from torch import nn

from paperkit.command.cli import make_parser
from paperkit.testing.commands import Command

CONFIGS = Path(__file__).parents[1] / "configs"
PIXELS: dict[str, Any] = dict(
    sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=8,
)  # fmt: skip
LATENT: dict[str, Any] = dict(
    sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=12, attention_head_dim=1,
)  # fmt: skip
LDM = dict(
    num_train_timesteps=1000, beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False,
    set_alpha_to_one=False, steps_offset=1,
)  # fmt: skip
"""Latent diffusion's schedule."""
TINY: dict[str, Any] = {
    "engine": "ldm", "accelerator": "cpu",
    "sampler": {"steps": 4, "eta": 1.0, "guidance": 1.0},
    "calibration": {"images": 8, "records": 24, "range_records": 8, "pairs": 6, "batch": 3},
    "reconstruction": {"weight_iterations": 3, "weight_batch": 4, "step_iterations": 3, "step_batch": 4},
    "evaluation": {"images": 4},
}  # fmt: skip
"""Options of the engine `ldm` for a run of seconds."""

ptq4dm = Command(
    "ptq4dm",
    "ptq4dm.cli:main",
    preload=("ptq4dm.training.engine", "ptq4dm.training.arms", "ptq4dm.training.summary"),
)


def tiny_unet(conditional: bool = False, seed: int = 0) -> Any:
    """A U-Net of diffusers with random weights, for 3 x 8 x 8; with contexts of width 12."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(**LATENT) if conditional else UNet2DModel(**PIXELS)
    with torch.no_grad():
        for module in unet.modules():  # norms and biases that differ from their constant start
            if isinstance(module, nn.GroupNorm | nn.LayerNorm) and module.weight is not None:
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.2)
    return unet.eval()


def pixel_folder(path: Path, seed: int = 0) -> Path:
    """A DDPM of a user: `unet/` and `scheduler/`."""
    tiny_unet(seed=seed).save_pretrained(path / "unet")
    DDIMScheduler(**LDM).save_pretrained(path / "scheduler")
    return path


def options_of(engine: Any, *configs: Path) -> Any:
    """What config files give to an engine."""
    parser = make_parser("ptq4dm train")
    parser.add_argument("--config", action="config")
    parser.add_argument("--engine", type=str)
    engine.add_arguments(parser)
    return parser.instantiate_classes(parser.parse_args([word for path in configs for word in ("--config", str(path))]))


def merged(*contents: dict[str, Any]) -> dict[str, Any]:
    """Config contents, later over earlier, one level deep as the command line does it."""
    out: dict[str, Any] = {}
    for content in contents:
        for key, value in content.items():
            out[key] = {**out.get(key, {}), **value} if isinstance(value, dict) else value
    return out


def write_yaml(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path
