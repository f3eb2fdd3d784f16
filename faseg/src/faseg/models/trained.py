"""What `faseg train` leaves (mmengine's checkpoint beside the run's config) as the network of `faseg.models.faseg`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.runner.checkpoint import get_torch_safe_globals
from torch import Tensor

from faseg.models.faseg import FASeg
from paperkit.errors import UserError
from paperkit.files.weights import load_strict, read_checkpoint
from paperkit.training.openmmlab import mappings, newest_whole, read_data

KEPT = "segmentation.json"
"""File of a run folder that holds its config."""
HEAD = ("conv_dim", "mask_dim", "key_pos", "pixel_decoder", "decoder")


def is_run(path: Path) -> bool:
    """Whether a path is a run folder of the segmentation engine, or a checkpoint inside of one."""
    return (path if path.is_dir() else path.parent).joinpath(KEPT).is_file()


def from_run(path: Path) -> FASeg:
    """The network of a run, in eval mode, with the names of its classes.

    Args:
        path: the run folder (its newest whole checkpoint is taken), or a checkpoint inside of it.

    Raises:
        UserError: no whole checkpoint, one that could run code, or a config of another network.
    """
    folder = path if path.is_dir() else path.parent
    checkpoint = newest_whole(folder) if path.is_dir() else path
    if checkpoint is None:
        raise UserError(f"{folder} has no whole checkpoint iter_*.pth")
    config = read_data(folder / KEPT)
    content = read_checkpoint(str(checkpoint), allow=get_torch_safe_globals(), advice=None)
    names = content.get("meta", {}).get("dataset_meta", {}).get("classes")
    model = FASeg(**_options(config, folder / KEPT), class_names=list(names) if names else None)
    load_strict(model, from_mmseg(content["state_dict"]), str(checkpoint))
    return model.eval()


def from_mmseg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of mmsegmentation's `EncoderDecoder` under the names of `FASeg`."""
    moved = ((key.replace("decode_head.criterion.", "criterion."), value) for key, value in state.items())
    return {key.replace("decode_head.", "sem_seg_head."): value for key, value in moved}


def _options(config: Any, source: Path) -> dict[str, Any]:
    """Arguments of `FASeg` that build the network of an mmengine config."""
    try:
        backbone, head = dict(config.model.backbone), dict(config.model.decode_head)
        steps = config.test_dataloader.dataset.pipeline
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{source} describes no network of mmsegmentation with its data") from error
    if head.get("type") != "FASegHead" or backbone.get("type") not in ("FASegResNet", "FASegSwin"):
        raise UserError(
            f"{source} has the head {head.get('type')!r} on {backbone.get('type')!r}; "
            "known are FASegHead on FASegResNet or FASegSwin"
        )
    kind = backbone.pop("type")
    backbone.pop("pretrained", None)
    if kind == "FASegSwin":
        from faseg.models.swin import SIZES

        backbone = {**SIZES[backbone.pop("name", "swin_t")], **backbone}
    options = {key: head[key] for key in HEAD if key in head}
    sizes = next((step for step in mappings(steps) if step.get("type") == "ShortestEdge"), None)
    if sizes is not None:
        options.update(shortest=sizes["sizes"], longest=sizes["longest"])
    shape = dict(kind="resnet" if kind == "FASegResNet" else "swin", **backbone)
    return dict(backbone=shape, num_classes=head["num_classes"], **options)
