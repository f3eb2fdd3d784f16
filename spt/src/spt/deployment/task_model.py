"""A saved delta on its backbone, found by a run's folder or their two paths, and what it says of an image."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.data.pictures import read_picture
from paperkit.errors import UserError
from paperkit.files.runs import resolve_run
from spt.models.backbones import create_backbone, load_backbone
from spt.models.delta import CONFIG, Delta, load_delta
from spt.models.spt_model import SPTModel
from spt.training.image_lists import make_transform


def delta_folder(ckpt: str | None, root: str) -> Path:
    """The delta that `--ckpt` means: a delta folder, or that of a run (without it, of the newest finished run).

    Raises:
        UserError: when there is none.
    """
    if ckpt is not None and Path(ckpt).is_dir() and not (Path(ckpt) / "started").is_file():
        return Path(ckpt)
    run, file = resolve_run(ckpt, root, "spt")
    if run is None or file is not None:
        raise UserError(f"{file} is no delta; name a run or a delta folder")
    if not (run.path / "delta" / CONFIG).is_file():
        raise UserError(f"{run.path} holds no delta, only runs of SPT and its modules on real data do; name one")
    return run.path / "delta"


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
    delta: Delta,
    folder: str | Path,
    file: str | None,
    arch: str | None,
    trust_pickle: bool = False,
    part: str | None = None,
) -> nn.Module:
    """The plain backbone that a delta says it belongs to, with a head of the delta's class count.

    Args:
        file: pretrained file of the backbone.
        arch: timm architecture, for deltas that do not name theirs.
        part: which of several sets of weights in that file.

    Raises:
        UserError: see `described_backbone`; or when the file does not fit.
    """
    arch, sizes = described_backbone(delta.extra, folder, arch)
    bias = next((v for name, v in delta.tensors.items() if delta.head in name and name.endswith("bias")), None)
    if bias is None:
        raise UserError(f"{folder} has no head")
    model = create_backbone(arch, bias.numel(), **sizes)
    if file is None:
        raise UserError("name the backbone's pretrained file with --file")
    load_backbone(model, file, None, trust_pickle, part=part)
    return model


def open_task(
    folder: str | Path,
    file: str | None,
    arch: str | None = None,
    trust_pickle: bool = False,
    part: str | None = None,
) -> SPTModel:
    """The tuned model of a delta folder.

    Raises:
        UserError: see `bare_backbone` and `spt.SPTModel.from_pretrained`.
    """
    delta = load_delta(folder)
    return SPTModel.from_pretrained(bare_backbone(delta, folder, file, arch, trust_pickle, part), folder).eval()


def read_image(path: str | Path, size: int = 224, transform: str = "direct") -> Tensor:
    """(1, 3, size, size), in the evaluation transform of the recipes.

    Raises:
        UserError: for a file that is no image.
    """
    return make_transform(transform, False, size)(read_picture(path))[None]


def image_size(model: Any) -> int:
    """Pixels of the model's input."""
    return int(model.patch_embed.img_size[0]) if hasattr(model, "patch_embed") else 224


@torch.no_grad()
def top_classes(model: nn.Module, image: Tensor, count: int = 5) -> list[tuple[int, float]]:
    """(class, probability in percent), most likely first."""
    probabilities = 100 * model(image).softmax(-1)[0]
    top = probabilities.topk(min(count, probabilities.numel()))
    return [(int(c), float(p)) for c, p in zip(top.indices, top.values, strict=True)]
