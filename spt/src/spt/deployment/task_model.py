"""A saved delta on its backbone, from two paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from paperkit.errors import UserError
from spt.models.backbones import create_backbone, load_backbone
from spt.models.delta import Delta, load_delta
from spt.models.spt_model import SPTModel
from spt.training.image_lists import make_transform


def described_backbone(extra: dict[str, Any], folder: str | Path, arch: str | None) -> tuple[str, dict[str, Any]]:
    """timm architecture and further constructor arguments of the backbone that a delta was made on.

    Args:
        extra: of the delta.
        arch: for deltas that do not name theirs.

    Raises:
        UserError: when neither names the architecture.
    """
    saved: dict[str, Any] = extra.get("backbone") or {}
    if not (arch := arch or saved.get("arch")):
        raise UserError(f"{folder} does not name its architecture; say --arch")
    sizes = dict(saved.get("sizes") or {})
    if saved.get("img_size", 224) != 224:
        sizes["img_size"] = saved["img_size"]
    return arch, sizes


def bare_backbone(
    delta: Delta, folder: str | Path, file: str | None, arch: str | None, trust_pickle: bool = False
) -> nn.Module:
    """The plain backbone that a delta says it belongs to, with a head of the delta's class count.

    Args:
        file: pretrained file of the backbone.
        arch: timm architecture, for deltas that do not name theirs.

    Raises:
        UserError: see :func:`described_backbone`; or when the file does not fit.
    """
    arch, sizes = described_backbone(delta.extra, folder, arch)
    bias = next((v for name, v in delta.tensors.items() if delta.head in name and name.endswith("bias")), None)
    if bias is None:
        raise UserError(f"{folder} has no head")
    model = create_backbone(arch, bias.numel(), **sizes)
    if file is None:
        raise UserError("name the backbone's pretrained file with --file")
    load_backbone(model, file, None, trust_pickle)
    return model


def open_task(folder: str | Path, file: str | None, arch: str | None = None, trust_pickle: bool = False) -> SPTModel:
    """The tuned model of a delta folder.

    Raises:
        UserError: see :func:`bare_backbone` and :meth:`spt.SPTModel.from_pretrained`.
    """
    delta = load_delta(folder)
    return SPTModel.from_pretrained(bare_backbone(delta, folder, file, arch, trust_pickle), folder).eval()


def read_image(path: str | Path, size: int = 224, transform: str = "direct") -> Tensor:
    """(1, 3, size, size), in the evaluation transform of the recipes.

    Raises:
        UserError: for a file that is no image.
    """
    try:
        with Image.open(path) as image:
            return make_transform(transform, False, size)(image.convert("RGB"))[None]
    except OSError as error:
        raise UserError(f"{path} cannot be read as an image: {error}") from error


@torch.no_grad()
def top_classes(model: nn.Module, image: Tensor, count: int = 5) -> list[tuple[int, float]]:
    """(class, probability in percent), most likely first."""
    probabilities = 100 * model(image).softmax(-1)[0]
    top = probabilities.topk(min(count, probabilities.numel()))
    return [(int(c), float(p)) for c, p in zip(top.indices, top.values, strict=True)]
