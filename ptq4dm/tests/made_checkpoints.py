"""Made checkpoints in the form of CompVis': whole tiny models under the authors' keys."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptq4dm.models.compvis import FIRST_STAGE, UNET, first_stage_names, to_official, unet_names
from ptq4dm.models.latent_diffusion import (
    FirstStageOptions,
    LatentDiffusion,
    UNetOptions,
    build_first_stage,
    build_unet,
)

VQ = FirstStageOptions("vq", (1, 2), 3, 16, 8, 1, 16, 4)
KL = FirstStageOptions("kl", (1, 2), 4, 0, 8, 1, 16, 4)
TINY = {
    "cin": LatentDiffusion(
        UNetOptions(
            8, 3, 3, 16, (2,), 1, (1, 2), num_heads=1, use_spatial_transformer=True, context_dim=12, norm_num_groups=8
        ),
        VQ, 0.0015, 0.0195, classes=5, use_ema=False,
    ),
    "beds": LatentDiffusion(
        UNetOptions(8, 3, 3, 16, (2,), 1, (1, 2), num_head_channels=8, norm_num_groups=8), VQ, 0.0015, 0.0195
    ),
    "churches": LatentDiffusion(
        UNetOptions(
            8, 4, 4, 16, (1,), 1, (1, 2), num_heads=2, use_scale_shift_norm=True, resblock_updown=True,
            norm_num_groups=8,
        ),
        KL, 0.0015, 0.0155,
    ),
}  # fmt: skip


def made_state(name: str, seed: int = 0) -> dict[str, Tensor]:
    """The `state_dict` of a made file: plain and averaged weights, first stage, buffers."""
    torch.manual_seed(seed)
    model = TINY[name]
    unet, first_stage = build_unet(model.unet), build_first_stage(model.first_stage)
    plain = to_official(unet, unet_names(unet))
    plain = {key: torch.randn_like(tensor) * 0.1 for key, tensor in plain.items()}
    state = {UNET + key: tensor for key, tensor in plain.items()}
    if model.use_ema:
        state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
        state |= {"model_ema." + ("diffusion_model." + key).replace(".", ""): t * 0.5 for key, t in plain.items()}
    first = to_official(first_stage, first_stage_names(first_stage))
    state |= {FIRST_STAGE + key: tensor.detach().clone() for key, tensor in first.items()}
    state |= {f"{FIRST_STAGE}loss.discriminator.main.0.weight": torch.randn(3, 3), "betas": torch.rand(1000)}
    if model.classes is not None:
        state["cond_stage_model.embedding.weight"] = torch.randn(model.classes, 12)
    if name == "churches":
        state["scale_factor"] = torch.tensor(0.22765)
    return state


def made_file(path: Path, name: str, **others: Any) -> Path:
    torch.save({"state_dict": made_state(name), "epoch": 3, **others}, path)
    return path
