"""Reference files of the sampler under settings that the authors' tensors do not have, made by plain formulas."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from paperkit.testing.golden import verified
from ptq4dm.verification.kinds import KINDS


def written(folder: Path, kind: str, config: dict[str, object], tensors: dict[str, Tensor]) -> Path:
    path = folder / f"{kind}.safetensors"
    save_file(tensors, path, {"kind": kind, "describes": "", "config": json.dumps(config)})
    return path


@pytest.mark.parametrize("steps", [7, 250, 400], ids=str)
def test_corrected_steps_of_another_schedule(steps: int, tmp_path: Path) -> None:
    """The first steps' coefficient nearly cancels; slopes of -1 and below count as 0 as every negative one."""
    ends = 0.0015, 0.0155
    betas = torch.linspace(ends[0] ** 0.5, ends[1] ** 0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0).float().double()
    times = torch.arange(0, 1000, 1000 // steps) + 1
    random = torch.Generator().manual_seed(steps)
    k = 0.1 * torch.randn(len(times), generator=random)
    k[1] = -1.2
    bias = 0.1 * torch.randn(len(times), 4, generator=random)
    spread = torch.rand(len(times), generator=random)
    tensors = {"in.k": k, "in.bias": bias, "in.residual_std": spread, "in.timesteps": times}
    cases = []
    for index in (0, 1, len(times) - 1):
        x, eps, z = torch.randn(3, 2, 4, 3, 5, generator=random, dtype=torch.float64)
        a, b = float(alphas[times[index]]), float(alphas[times[index - 1] if index else 0])
        slope = max(float(k[index]), 0.0)
        sigma2 = (1 - b) / (1 - a) * (1 - a / b)
        excess = ((math.sqrt(1 - b - sigma2) - math.sqrt(b * (1 - a) / a)) * float(spread[index]) / (1 + slope)) ** 2
        left2 = max(sigma2 - excess, 0.0)
        noise = (eps - bias[index][:, None, None]) / (1 + slope)
        x0 = (x - math.sqrt(1 - a) * noise) / math.sqrt(a)
        x_prev = math.sqrt(b) * x0 + math.sqrt(1 - b - left2) * noise + math.sqrt(left2) * z
        named = {"in.x": x, "in.eps": eps, "in.noise": z, "out.x_prev": x_prev, "out.pred_x0": x0}
        for name, value in named.items():
            tensors[name.replace(".", f".case{index}.")] = value.float()
        cases.append(
            {
                "name": f"case{index}", "eta": 1.0, "correct": True, "index": index, "t": int(times[index]),
                "sigma": math.sqrt(sigma2), "excess_variance": excess, "branch": "reduced" if left2 else "zero",
            }
        )  # fmt: skip
    config = {"linear_start": ends[0], "linear_end": ends[1], "steps": steps, "cases": cases}
    good, printed = verified(written(tmp_path, "corrected_ddim_step", config, tensors), KINDS)
    assert good, printed
